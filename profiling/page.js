"use strict";
// Click a heading to sort by it, type to keep the rows that hold every word.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...body.rows].sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        const numbers = a !== "" && b !== "" && !isNaN(a) && !isNaN(b);
        return numbers ? a - b : a.localeCompare(b);
      });
      body.append(...(down ? rows.reverse() : rows));
    });
  });
}
for (const field of document.querySelectorAll("input[data-filters]")) {
  const rows = document.querySelectorAll(`#${field.dataset.filters} [data-text]`);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every((word) => row.dataset.text.includes(word));
  });
}
document.documentElement.dataset.ready = "yes";
