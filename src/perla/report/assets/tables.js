// Tables that sort by a column and copy as CSV.

function sortable(table) {
  const body = table.tBodies[0];
  const title = table.caption.textContent;
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const name = head.textContent;
    head.replaceChildren(button(name, () => sort(column)));
    head.setAttribute("aria-sort", "none");
  });

  // "0.93 [0.90, 0.95]" sorts by 0.93, and what is no number comes last.
  function key(row, column) {
    const text = row.cells[column].textContent.replaceAll(",", "");
    const number = Number.parseFloat(text.replace("−", "-"));
    return Number.isNaN(number) ? [1, text] : [0, number];
  }

  function sort(column) {
    const ascending = heads[column].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head) => head.setAttribute("aria-sort", "none"));
    heads[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [key(row, column), row]);
    rows.sort(([[a, x]], [[b, y]]) => {
      if (a !== b) return a - b;
      const order = a ? x.localeCompare(y) : x - y;
      return ascending ? order : -order;
    });
    body.append(...rows.map(([, row]) => row));
    say(`${title}: sorted by ${heads[column].textContent}, ${ascending ? "ascending" : "descending"}`);
  }

  function copyTable() {
    const rows = [...table.tHead.rows, ...body.rows];
    copy(csv(rows.map((row) => [...row.cells].map((cell) => cell.textContent))), title);
  }

  table.parentElement.before(
    make("div", { class: "tools" }, button("Copy as CSV", copyTable, { "aria-label": `Copy ${title} as CSV` })),
  );
}
