// The page's beginning: theme, tables, charts, replays.

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const toggle = document.getElementById("theme");
  const set = (on) => {
    document.documentElement.dataset.theme = on ? "dark" : "light";
    toggle.setAttribute("aria-pressed", String(on));
  };
  set(dark.matches);
  dark.addEventListener("change", (event) => set(event.matches));
  toggle.addEventListener("click", () => set(document.documentElement.dataset.theme !== "dark"));
}

startTheme();
document.querySelectorAll("table.sortable").forEach(sortable);
startCharts();
for (const root of document.querySelectorAll("[data-replay]")) {
  const index = Number(root.dataset.replay);
  replays.push(new Replay(root, facts.replays[index], index));
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
document.documentElement.dataset.ready = "true";
