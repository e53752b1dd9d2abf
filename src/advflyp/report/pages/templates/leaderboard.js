const choose = document.querySelectorAll("select");
function filter() {
  const [backbone, eps] = [...choose].map(select => select.value);
  for (const row of document.querySelectorAll("tr[data-backbone]"))
    row.hidden = backbone !== "" && row.dataset.backbone !== backbone;
  for (const cell of document.querySelectorAll(".board [data-eps]"))
    cell.hidden = eps !== "" && !["", eps].includes(cell.dataset.eps);
}
function shown(row, column) {
  const cell = row.cells[column];
  return (cell.querySelector(".v") || cell).textContent.trim();
}
function sort(head) {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.ariaSort !== "descending";
  const order = (a, b) => {
    const [x, y] = [shown(a, column), shown(b, column)];
    const [u, v] = [parseFloat(x), parseFloat(y)];
    if (Number.isNaN(u) || Number.isNaN(v)) return Number.isNaN(u) - Number.isNaN(v) || x.localeCompare(y);
    return down ? v - u : u - v;
  };
  for (const other of head.parentNode.cells) other.ariaSort = null;
  head.ariaSort = down ? "descending" : "ascending";
  body.append(...[...body.rows].sort(order));
}
document.querySelector("form.filters").hidden = false;
for (const select of choose) select.addEventListener("change", filter);
for (const button of document.querySelectorAll(".board th button"))
  button.addEventListener("click", () => sort(button.parentNode));
