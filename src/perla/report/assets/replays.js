// Replays: play, pause, scrub and step through an episode.

const BARS = 6; // Actions whose probabilities are shown for each agent.
const replays = [];

class Replay {
  constructor(root, spec, index) {
    this.spec = spec;
    this.frame = 0;
    this.timer = null;
    if (spec.kind === "field") {
      const frames = spec.frames.map((frame) => ({ ...spec.fixed, ...frame }));
      spec.fixed.view = battleView(frames[0], frames);
    }
    this.stage = make("div", { class: "stage" });
    this.panel = make("div", { class: "panel" });
    this.line = make("p", { class: "now" });
    const last = spec.frames.length - 1;
    this.scrubber = make("input", {
      type: "range", min: 0, max: last, value: 0, "aria-label": "State of the episode",
      oninput: () => { this.pause(); this.show(Number(this.scrubber.value)); },
    });
    this.toggle = button("Play", () => (this.timer ? this.pause() : this.play()));
    this.speed = make("select", { "aria-label": "Speed", onchange: () => { if (this.timer) { this.pause(); this.play(); } } },
      ...[[1, "1 step/s"], [4, "4 steps/s"], [12, "12 steps/s"]].map(([value, label]) => make("option", { value, selected: value === 4 }, label)));
    const controls = make("div", { class: "tools player" },
      button("First", () => this.step(-last)), button("Back", () => this.step(-1)), this.toggle,
      button("Forward", () => this.step(1)), button("Last", () => this.step(last)), this.scrubber, this.speed);
    root.append(make("div", { class: "replay-body" }, this.stage, this.panel), this.line, controls);
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", `Replay ${index + 1}: space plays, arrow keys step`);
    root.setAttribute("tabindex", "0");
    root.addEventListener("keydown", (event) => this.press(event, root));
    this.show(0);
  }

  show(frame) {
    const { spec } = this;
    this.frame = Math.max(0, Math.min(spec.frames.length - 1, frame));
    this.scrubber.value = this.frame;
    const scene = { ...spec.fixed, ...spec.frames[this.frame] };
    const label = `State ${this.frame} of ${spec.frames.length - 1}`;
    this.stage.replaceChildren(SCENES[spec.kind](scene, label));
    const step = spec.steps[this.frame];
    const earned = spec.rewards.slice(0, this.frame).reduce((sum, reward) => sum + (reward ?? 0), 0);
    const total = this.frame === spec.frames.length - 1 ? spec.return : earned;
    const before = this.frame ? `, reward ${short(spec.rewards[this.frame - 1])}` : "";
    const end = step ? "" : ` – the episode is ${spec.ended === "terminated" ? "over" : "cut at its limit"}`;
    this.line.textContent = `${label}${before}, return so far ${short(total)}${end}`;
    this.scrubber.setAttribute("aria-valuetext", this.line.textContent);
    this.panel.replaceChildren(step ? this.decisions(step) : make("p", {}, `Return ${short(spec.return)}.`));
  }

  decisions(step) {
    const { spec } = this;
    const heads = ["agent", "next action", "probabilities"];
    const value = { critic: "value", utility: "utility" }[spec.values];
    if (value) heads.push(value);
    if (step.m) heads.push("marginal");
    const rows = step.a.map((action, i) => make("tr", { class: step.alive && !step.alive[i] ? "dead" : null },
      make("th", { scope: "row" }, `#${i + 1}`),
      make("td", {}, this.name(action)),
      make("td", {}, step.p ? this.bars(step, i, action) : "–"),
      value ? make("td", { class: "number" }, short(step.v[i])) : null,
      step.m ? make("td", { class: "number" }, short(step.m[i])) : null));
    return make("table", {},
      make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
      make("tbody", {}, ...rows));
  }

  name(action) {
    if (Array.isArray(action)) return action.map((x) => short(x)).join(", ");
    return this.spec.actions[action] ?? String(action);
  }

  // The probabilities of all actions, or of the most probable ones, in the order of the actions.
  bars(step, agent, action) {
    const probabilities = step.p[agent];
    const best = probabilities.map((p, i) => [p, i]).sort((a, b) => b[0] - a[0]).slice(0, BARS).map(([, i]) => i);
    if (!best.includes(action)) best[best.length - 1] = action;
    return make("div", { class: "bars" }, ...best.sort((a, b) => a - b).map((i) => {
      const q = step.q && step.q[agent][i];
      const words = `${this.name(i)} ${(100 * probabilities[i]).toFixed(probabilities[i] > 0.995 || probabilities[i] < 0.0005 ? 0 : 1)}%`;
      const row = make("div", { class: i === action ? "bar chosen" : "bar" }, draw("svg", {
        width: 48, height: 8, viewBox: "0 0 48 8", "aria-hidden": "true",
      }, draw("rect", { width: 48, height: 8, class: "track" }), draw("rect", { width: 48 * probabilities[i], height: 8, class: "share" })),
      make("span", {}, q === undefined || q === null ? words : `${words}, Q ${short(q)}`));
      return row;
    }));
  }

  step(by) {
    this.pause();
    this.show(this.frame + by);
  }

  play() {
    if (this.frame >= this.spec.frames.length - 1) this.show(0);
    this.toggle.textContent = "Pause";
    this.timer = setInterval(() => {
      this.show(this.frame + 1);
      if (this.frame >= this.spec.frames.length - 1) this.pause();
    }, 1000 / Number(this.speed.value));
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.toggle.textContent = "Play";
  }

  press(event, root) {
    if (event.target !== root) return; // Buttons and the scrubber have keys of their own.
    const last = this.spec.frames.length - 1;
    const actions = {
      " ": () => this.toggle.click(), ArrowRight: () => this.step(1), ArrowLeft: () => this.step(-1),
      Home: () => this.step(-last), End: () => this.step(last),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
    if (event.key !== " ") say(this.line.textContent);
  }
}
