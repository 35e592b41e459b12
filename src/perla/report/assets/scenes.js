// Pictures of states, from their scenes.

function text(x, y, size, words, ink) {
  return draw("text", { x, y, "font-size": size, "text-anchor": "middle", "dominant-baseline": "central", fill: ink }, String(words));
}

function image(width, height, label, ...children) {
  return draw("svg", { viewBox: `0 0 ${width} ${height}`, class: "scene", role: "img", "aria-label": label }, ...children);
}

// Agents are blue discs and foods orange apples, with their levels.
function gridScene({ size, agents, foods }, label) {
  const lines = [...Array(size + 1).keys()].flatMap((i) => [
    draw("line", { class: "cell", x1: i, x2: i, y1: 0, y2: size }),
    draw("line", { class: "cell", x1: 0, x2: size, y1: i, y2: i })]);
  const apples = foods.map(([row, column, level]) => draw("g", { class: "food" },
    draw("path", { d: `M${column + 0.5},${row + 0.3}q0.08,-0.16 0.22,-0.16`, class: "stalk" }),
    draw("circle", { cx: column + 0.5, cy: row + 0.55, r: 0.3, class: "apple" }),
    text(column + 0.5, row + 0.57, 0.36, level, "#2b2100")));
  const places = agents.map(([row, column]) => `${row},${column}`);
  const discs = agents.map(([row, column, level], i) => {
    const crowd = places.filter((place) => place === places[i]).length;
    const before = places.slice(0, i).filter((place) => place === places[i]).length;
    const x = column + 0.5 + ((before - (crowd - 1) / 2) * 0.9) / crowd;
    const r = 0.36 / Math.max(1, 0.85 * crowd);
    return draw("g", { class: "agent", "data-agent": i },
      draw("circle", { cx: x, cy: row + 0.5, r, class: "disc" }),
      text(x, row + 0.51, r, level, "#ffffff"),
      text(x + 0.8 * r, row + 0.5 - 0.95 * r, 0.5 * r + 0.08, `#${i + 1}`, "currentColor"));
  });
  return image(size, size, label, draw("rect", { class: "ground", width: size, height: size }), ...lines, ...apples, ...discs);
}

// A table of numbers; the cells of the last joint action are framed.
function tableScene({ rows, marked }, label) {
  const width = Math.max(...rows.map((row) => row.length));
  const largest = Math.max(1e-30, ...rows.flat().filter((x) => x !== null).map(Math.abs));
  const cells = rows.flatMap((row, i) => row.map((value, j) => {
    const share = value === null ? 0 : Math.abs(value) / largest;
    return draw("g", {},
      draw("rect", { x: j, y: i, width: 1, height: 1, class: value >= 0 ? "gain" : "loss", "fill-opacity": (0.1 + 0.8 * share).toFixed(3) }),
      value === null ? null : text(j + 0.5, i + 0.5, Math.min(0.34, 1.5 / short(value).length), short(value), value >= 0 && share > 0.6 ? "#ffffff" : "currentColor"));
  }));
  const frames = marked.map(([i, j]) => draw("rect", { x: j + 0.04, y: i + 0.04, width: 0.92, height: 0.92, class: "marked" }));
  return image(width, rows.length, label, ...cells, ...frames);
}

// The part of a battlefield in which the units of all frames are, with a margin: left, top, width, height.
function battleView({ terrain }, frames, margin = 3) {
  const places = frames.flatMap((frame) => frame.fighters);
  const [width, height] = [terrain[0].length, terrain.length];
  const span = (values, size) => {
    const low = Math.max(0, Math.floor(Math.min(...values) - margin));
    return [low, Math.min(size, Math.ceil(Math.max(...values) + margin)) - low];
  };
  if (!places.length) return [0, 0, width, height];
  const [x, w] = span(places.map((each) => each[0]), width);
  const [y, h] = span(places.map((each) => height - each[1]), height);
  return [x, y, w, h];
}

// A battlefield: agents are blue and enemies orange, with bars for life and shield.
function fieldScene({ terrain, fighters, view: part }, label) {
  const [width, height] = [terrain[0].length, terrain.length];
  const cells = terrain.flatMap((row, i) => [...row].map((kind, j) =>
    (kind === "." ? null : draw("rect", { x: j, y: i, width: 1, height: 1, class: kind === "#" ? "wall" : "cliff" }))));
  const shots = fighters.filter((each) => each[7]).map(([x, y, , enemy, , , , shot, heals]) => draw("line", {
    x1: x, y1: height - y, x2: shot[0], y2: height - shot[1], class: `shot ${heals ? "heal" : enemy ? "foe" : "friend"}`,
  }));
  const units = fighters.map(([x, y, r, enemy, name, life, shield]) => draw("g", { class: "unit" },
    draw("circle", { cx: x, cy: height - y, r, class: enemy ? "foe" : "friend" }),
    text(x, height - y, 1.2 * r, name, enemy ? "#2b2100" : "#ffffff"),
    ...[[life, "life", 0.25], [shield, "shield", 0.5]].filter(([share]) => share !== null).flatMap(([share, kind, above]) => [
      draw("rect", { x: x - r, y: height - y - r - above, width: 2 * r, height: 0.18, class: "bar" }),
      draw("rect", { x: x - r, y: height - y - r - above, width: 2 * r * Math.min(1, Math.max(0, share)), height: 0.18, class: kind }),
    ])));
  const field = image(width, height, label, draw("rect", { class: "ground", width, height }), ...cells, ...shots, ...units);
  field.setAttribute("viewBox", part.join(" "));
  return field;
}

function pictureScene({ src }, label) {
  return make("img", { src, alt: label, class: "scene" });
}

const SCENES = { grid: gridScene, table: tableScene, field: fieldScene, picture: pictureScene };
