"use strict";
// Tables: a click on a head sorts; a search shows rows with all of its words, or name=value of a column.
(() => {
  const text = (row, index) => (row.cells[index]?.textContent ?? "").trim();

  const compare = (a, b) => {
    const [missing, other] = [a === "" || a === "–", b === "" || b === "–"];
    if (missing || other) return missing && other ? 0 : missing ? Infinity : -Infinity;
    const difference = Number(a) - Number(b);
    return Number.isNaN(difference) ? a.localeCompare(b, "en", { numeric: true }) : difference;
  };

  const sort = (table, head) => {
    const index = [...head.parentNode.cells].indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((a, b) => {
      const order = compare(text(a, index), text(b, index));
      return Number.isFinite(order) && !up ? -order : Math.sign(order);
    });
    body.append(...rows);
  };

  const search = (input) => {
    for (const name of input.dataset.search.split(" ")) {
      const table = document.getElementById(name);
      if (!table) continue;
      const names = [...table.tHead.rows[0].cells].map((head) => head.dataset.name.toLowerCase());
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of table.tBodies[0].rows) {
        const all = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => {
          const [key, value] = word.split("=", 2);
          const index = value === undefined ? -1 : names.indexOf(key);
          return index < 0 ? all.includes(word) : text(row, index).toLowerCase() === value;
        });
        shown += !row.hidden;
      }
      if (name === input.dataset.search.split(" ")[0]) {
        input.closest(".search").querySelector("output").value = `${shown} of ${table.tBodies[0].rows.length} rows`;
      }
    }
  };

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    for (const head of table.tHead.rows[0].cells) {
      head.tabIndex = 0;
      head.title = "Sort";
      head.addEventListener("click", () => sort(table, head));
      head.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        sort(table, head);
      });
    }
  }
  for (const input of document.querySelectorAll("input[data-search]")) {
    input.closest(".search").hidden = false;
    input.addEventListener("input", () => search(input));
    search(input);
  }
  // Links of the focal plane search; a link to a row that a search hides shows it again.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-find], a[href^='#unit-']");
    const input = document.querySelector("input[data-search]");
    if (!link || !input) return;
    input.value = link.dataset.find ?? "";
    search(input);
  });
})();
