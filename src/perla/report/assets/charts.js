// Line charts with intervals: hover, zoom, keyboard, a legend that toggles.

const view = { axis: null, metric: null, hidden: new Set() };
const charts = [];

class Chart {
  constructor(root, spec) {
    this.root = root;
    this.spec = spec;
    this.range = null; // The part of the horizontal axis that is shown; null: all of it.
    this.cursor = null;
    this.tip = make("div", { class: "tip", hidden: true });
    this.frame = make("div", {
      class: "frame", tabindex: 0, role: "group",
      "aria-label": `Chart: ${spec.title}. Arrow keys read values, plus and minus zoom, 0 shows all.`,
      onkeydown: (event) => this.press(event),
      onpointermove: (event) => this.move(event),
      onpointerdown: (event) => this.grab(event),
      onpointerup: (event) => this.release(event),
      onpointerleave: () => { if (!this.grabbed) this.point(null); },
      onblur: () => this.point(null),
      ondblclick: () => this.zoom(null),
    });
    this.tools = make("div", { class: "tools" },
      button("Show all", () => this.zoom(null), { class: "reset", hidden: true }),
      button("Copy CSV", () => copy(csv(this.rows()), spec.title), { "aria-label": `Copy the data of ${spec.title} as CSV` }),
      button("Save SVG", () => this.export(), { "aria-label": `Save ${spec.title} as SVG` }));
    root.append(this.frame, this.tip, this.tools);
    new ResizeObserver(() => this.draw()).observe(root);
  }

  get axis() {
    return this.spec.axes.find((axis) => axis.key === view.axis) || this.spec.axes[0];
  }

  get metric() {
    return this.spec.metrics.find((metric) => metric.key === view.metric) || this.spec.metrics[0];
  }

  // The series that are shown, with their points on the chosen axes.
  get shown() {
    const [axis, metric] = [this.axis, this.metric];
    if (!axis || !metric) return [];
    return this.spec.series
      .filter((series) => !view.hidden.has(series.method))
      .filter((series) => series.x[axis.key] && series.y[metric.key])
      .map((series) => ({
        method: series.method, name: facts.methods[series.method],
        x: series.x[axis.key], ...series.y[metric.key],
      }));
  }

  rows() {
    const header = ["method", this.axis.label, this.metric.label, "low", "high"];
    const lines = this.shown.map((each) =>
      each.x.map((x, i) => [each.name, x, each.point[i], each.low[i], each.high[i]]));
    return [header, ...lines.flat()];
  }

  scale() {
    const width = Math.max(260, this.root.clientWidth);
    const height = Math.round(Math.min(340, Math.max(220, 0.6 * width)));
    const xs = this.shown.flatMap((each) => each.x).filter((x) => x !== null);
    const full = this.axis && this.axis.key === "tau"
      ? [Math.min(...xs), Math.max(...xs)] : [0, Math.max(...xs)];
    if (full[0] === full[1]) full[1] = full[0] + 1;
    const [x0, x1] = this.range || full;
    const inside = (each) => each.x.map((x, i) => (x >= x0 && x <= x1 ? i : -1)).filter((i) => i >= 0);
    const ys = this.shown.flatMap((each) => inside(each).flatMap((i) => [each.low[i], each.high[i], each.point[i]]))
      .filter((y) => y !== null);
    let [y0, y1] = ys.length ? [Math.min(...ys), Math.max(...ys)] : [0, 1];
    if (y0 === y1) [y0, y1] = [y0 - 0.5, y1 + 0.5];
    const pad = 0.04 * (y1 - y0);
    [y0, y1] = [y0 - pad, y1 + pad];
    const yTicks = ticks(y0, y1, 6);
    const left = 26 + 7 * Math.max(...yTicks.map((tick) => short(tick).length));
    const box = { left, right: width - 16, top: 10, bottom: height - 42 };
    const px = (x) => box.left + ((x - x0) / (x1 - x0)) * (box.right - box.left);
    const py = (y) => box.bottom - ((y - y0) / (y1 - y0)) * (box.bottom - box.top);
    return { width, height, box, full, x0, x1, px, py, yTicks };
  }

  draw() {
    const shown = this.shown;
    this.tools.querySelector(".reset").hidden = !this.range;
    if (!shown.length) {
      this.s = null;
      const why = this.spec.series.length ? "Nothing is chosen: no method has these values, or all are hidden." : "No data.";
      this.frame.replaceChildren(make("p", { class: "empty" }, why));
      return;
    }
    const s = (this.s = this.scale());
    const clip = `clip-${charts.indexOf(this)}`;
    const plot = draw("g", { "clip-path": `url(#${clip})` }, ...shown.map((each) => this.series(each, s)));
    const image = draw("svg", {
      width: s.width, height: s.height, viewBox: `0 0 ${s.width} ${s.height}`, role: "img",
      "aria-label": `${this.spec.title}: ${this.metric.label} against ${this.axis.label}, ${shown.length} methods`,
    },
      draw("defs", {}, draw("clipPath", { id: clip }, draw("rect", {
        x: s.box.left - 6, y: s.box.top - 6, width: s.box.right - s.box.left + 12, height: s.box.bottom - s.box.top + 12,
      }))),
      this.axes(s), plot, draw("g", { class: "cursor" }), draw("rect", { class: "select", visibility: "hidden" }));
    this.frame.replaceChildren(image);
    this.image = image;
    if (this.cursor !== null) this.point(this.cursor);
  }

  axes(s) {
    const time = this.axis.key === "seconds";
    const count = Math.max(2, Math.floor((s.box.right - s.box.left) / 80));
    const xTicks = (time ? timeTicks : ticks)(s.x0, s.x1, count);
    const unit = s.x1 >= 7200 ? ["hours", 3600] : s.x1 >= 120 ? ["minutes", 60] : ["seconds", 1];
    const name = time ? `${this.axis.label}, ${unit[0]}` : this.axis.label;
    const text = (tick) => (time ? String(Number((tick / unit[1]).toPrecision(4))) : short(tick));
    const middle = (s.box.left + s.box.right) / 2;
    return draw("g", { class: "axes" },
      ...s.yTicks.map((tick) => draw("line", { class: "grid", x1: s.box.left, x2: s.box.right, y1: s.py(tick), y2: s.py(tick) })),
      ...s.yTicks.map((tick) => draw("text", { x: s.box.left - 6, y: s.py(tick) + 4, "text-anchor": "end" }, short(tick))),
      ...xTicks.map((tick) => draw("line", { class: "tick", x1: s.px(tick), x2: s.px(tick), y1: s.box.bottom, y2: s.box.bottom + 4 })),
      ...xTicks.map((tick) => draw("text", { x: s.px(tick), y: s.box.bottom + 17, "text-anchor": "middle" }, text(tick))),
      draw("line", { class: "axis", x1: s.box.left, x2: s.box.right, y1: s.box.bottom, y2: s.box.bottom }),
      draw("text", { class: "label", x: middle, y: s.height - 6, "text-anchor": "middle" }, name),
      draw("text", {
        class: "label", "text-anchor": "middle",
        transform: `translate(12 ${(s.box.top + s.box.bottom) / 2}) rotate(-90)`,
      }, this.metric.label));
  }

  series(each, s) {
    const known = each.x.map((_, i) => i).filter((i) => each.x[i] !== null && each.point[i] !== null);
    if (!known.length) return draw("g", { class: "series", "data-method": each.name });
    const at = (i, y) => `${s.px(each.x[i]).toFixed(1)},${s.py(y).toFixed(1)}`;
    const line = known.map((i) => at(i, each.point[i]));
    const upper = known.map((i) => at(i, each.high[i] ?? each.point[i]));
    const lower = known.map((i) => at(i, each.low[i] ?? each.point[i])).reverse();
    const every = Math.max(1, Math.round(known.length / 8));
    const marks = known.filter((_, i) => (i + each.method) % every === 0);
    const ink = colour(each.method);
    return draw("g", { class: "series", "data-method": each.name },
      draw("path", { class: "band", d: `M${upper.join("L")}L${lower.join("L")}Z`, fill: ink }),
      draw("path", { class: "line", d: `M${line.join("L")}`, stroke: ink }),
      ...marks.map((i) => draw("path", {
        class: "mark", d: markerPath(each.method, 4), fill: ink, transform: `translate(${at(i, each.point[i])})`,
      })));
  }

  // Show the values at the evaluation nearest to `x`, in units of the axis.
  point(x) {
    this.cursor = x;
    const cursor = this.image && this.image.querySelector(".cursor");
    if (!this.s || x === null) {
      this.tip.hidden = true;
      if (cursor) cursor.replaceChildren();
      return [];
    }
    const values = this.shown.map((each) => {
      const distance = (i) => (each.x[i] === null ? Infinity : Math.abs(each.x[i] - x));
      const i = each.x.map((_, j) => j).reduce((a, b) => (distance(b) < distance(a) ? b : a), 0);
      return { ...each, at: each.x[i], value: each.point[i], from: each.low[i], to: each.high[i] };
    }).sort((a, b) => (b.value ?? -Infinity) - (a.value ?? -Infinity));
    const time = this.axis.key === "seconds";
    const place = this.s.px(values[0].at);
    cursor.replaceChildren(
      draw("line", { x1: place, x2: place, y1: this.s.box.top, y2: this.s.box.bottom }),
      ...values.filter((each) => each.value !== null).map((each) =>
        draw("circle", { cx: this.s.px(each.at), cy: this.s.py(each.value), r: 4, fill: colour(each.method) })));
    this.tip.replaceChildren(
      make("strong", {}, `${this.axis.label}: ${time ? duration(values[0].at) : short(values[0].at)}`),
      ...values.map((each) => make("div", {}, swatch(each.method), `${each.name} `,
        make("b", {}, short(each.value)), ` [${short(each.from)}, ${short(each.to)}]`)));
    this.tip.hidden = false;
    const room = this.root.clientWidth - this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(room, place > this.s.width / 2 ? place - this.tip.offsetWidth - 12 : place + 12))}px`;
    return values;
  }

  xOf(event) {
    const s = this.s;
    const left = this.image.getBoundingClientRect().left;
    const share = (event.clientX - left - s.box.left) / (s.box.right - s.box.left);
    return s.x0 + Math.min(1, Math.max(0, share)) * (s.x1 - s.x0);
  }

  move(event) {
    if (!this.s) return;
    const x = this.xOf(event);
    this.point(x);
    if (!this.grabbed) return;
    const [a, b] = [this.grabbed.x, x].sort((p, q) => p - q).map(this.s.px);
    const box = this.image.querySelector(".select");
    for (const [name, value] of Object.entries({
      x: a, width: b - a, y: this.s.box.top, height: this.s.box.bottom - this.s.box.top, visibility: "visible",
    })) box.setAttribute(name, value);
  }

  grab(event) {
    if (!this.s || event.pointerType === "touch") return;
    this.grabbed = { x: this.xOf(event) };
    this.frame.setPointerCapture(event.pointerId);
  }

  release(event) {
    if (!this.grabbed) return;
    const range = [this.grabbed.x, this.xOf(event)].sort((p, q) => p - q);
    this.grabbed = null;
    if (this.s.px(range[1]) - this.s.px(range[0]) > 8) this.zoom(range);
    else this.image.querySelector(".select").setAttribute("visibility", "hidden");
  }

  zoom(range) {
    this.range = range;
    this.draw();
  }

  press(event) {
    if (!this.s) return;
    const s = this.s;
    const grid = [...new Set(this.shown.flatMap((each) => each.x))].filter((x) => x >= s.x0 && x <= s.x1).sort((a, b) => a - b);
    const now = this.cursor === null ? -1 : grid.findIndex((x) => x >= this.cursor - 1e-9);
    const read = (index) => {
      const values = this.point(grid[Math.max(0, Math.min(grid.length - 1, index))]);
      say(values.map((each) => `${each.name} ${short(each.value)}`).join(", "));
    };
    const around = (factor) => {
      const centre = this.cursor ?? (s.x0 + s.x1) / 2;
      const half = ((s.x1 - s.x0) * factor) / 2;
      const low = Math.max(s.full[0], centre - half);
      const high = Math.min(s.full[1], centre + half);
      this.zoom(low <= s.full[0] && high >= s.full[1] ? null : [low, high]);
    };
    const actions = {
      ArrowRight: () => read(now + 1), ArrowLeft: () => read(now < 0 ? grid.length - 1 : now - 1),
      Home: () => read(0), End: () => read(grid.length - 1),
      "+": () => around(0.5), "=": () => around(0.5), "-": () => around(2), 0: () => this.zoom(null),
      Escape: () => this.point(null),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  // The picture with its colours and fonts written out, so that it looks the same everywhere.
  export() {
    this.point(null);
    const copied = this.image.cloneNode(true);
    const [from, to] = [this.image, copied].map((image) => [...image.querySelectorAll("*")]);
    from.forEach((node, i) => {
      const style = getComputedStyle(node);
      for (const name of ["fill", "stroke", "stroke-width", "fill-opacity", "font-size", "font-family"]) {
        to[i].setAttribute(name, style.getPropertyValue(name));
      }
    });
    copied.setAttribute("xmlns", SVG);
    save(`${this.spec.title.replace(/[^\w.-]+/g, "-")}.svg`, "image/svg+xml", new XMLSerializer().serializeToString(copied));
  }
}

function swatch(method) {
  return draw("svg", { class: "swatch", width: 26, height: 12, viewBox: "-13 -6 26 12", "aria-hidden": "true" },
    draw("line", { x1: -13, x2: 13, stroke: colour(method), "stroke-width": 2 }),
    draw("path", { d: markerPath(method, 5), fill: colour(method) }));
}

function redraw() {
  charts.forEach((chart) => { chart.range = null; chart.cursor = null; chart.draw(); });
}

function choice(title, name, options) {
  const inputs = options.map(({ key, label }) => make("label", {},
    make("input", { type: "radio", name, value: key, checked: key === view[name], onchange: () => { view[name] = key; redraw(); } }),
    label));
  return make("fieldset", {}, make("legend", {}, title), ...inputs);
}

function unique(lists) {
  return [...new Map(lists.flat().map((each) => [each.key, each])).values()];
}

function legend() {
  return facts.methods.map((name, method) => {
    const toggle = button("", () => {
      if (!view.hidden.delete(method)) view.hidden.add(method);
      toggle.setAttribute("aria-pressed", String(!view.hidden.has(method)));
      charts.forEach((chart) => chart.draw());
    }, { "aria-pressed": "true", title: `Show or hide ${name}` });
    toggle.append(swatch(method), name);
    return toggle;
  });
}

function startCharts() {
  const curves = facts.charts.filter((spec) => spec.axes[0] && spec.axes[0].key !== "tau");
  const [axes, metrics] = [unique(curves.map((spec) => spec.axes)), unique(curves.map((spec) => spec.metrics))];
  view.axis = axes[0] && axes[0].key;
  view.metric = metrics[0] && metrics[0].key;
  for (const root of document.querySelectorAll("[data-chart]")) {
    charts.push(new Chart(root, facts.charts[Number(root.dataset.chart)]));
  }
  const controls = document.getElementById("controls");
  if (!controls) return;
  controls.append(choice("Against", "axis", axes), choice("Show", "metric", metrics));
  document.getElementById("legend").append(...legend());
}
