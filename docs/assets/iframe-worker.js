// Browsers start no workers for a page that was opened as a file, and the search is a worker.
// Here it runs in a hidden frame of the page instead. Pages from a server are left alone.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const scope = this.frame.contentWindow
      scope.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      scope.importScripts = (...urls) => urls.reduce((done, each) => done.then(() => load(each)), Promise.resolve())
      const load = src => new Promise((resolve, reject) => {
        const script = scope.document.createElement("script")
        Object.assign(script, { src, onload: resolve, onerror: reject })
        scope.document.body.append(script)
      })
      this.ready = load(new URL(url, location).href)
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
