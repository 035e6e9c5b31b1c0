"use strict";
// Sorts and filters the table of images; the choice stands in the address: #sort=-gain&show=worst&find=cat
(() => {
  const tools = document.getElementById("tools");
  if (!tools) return;
  const table = document.getElementById("images");
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells).filter((head) => head.dataset.key);
  const names = new Intl.Collator(undefined, { numeric: true });
  const rows = Array.from(body.rows, (row, place) => ({
    row,
    place,
    name: row.querySelector(".name").textContent,
    text: row.cells[0].textContent.toLowerCase(),
    groups: row.dataset.groups.split(" "),
  }));

  const value = (one, key) => {
    if (key === "name") return one.name;
    const text = one.row.dataset[key];
    return text === undefined ? null : Number(text);
  };

  const compare = (one, other, key, sign) => {
    const [a, b] = [value(one, key), value(other, key)];
    // What has no value comes last either way.
    if (a === null || b === null) return (a === null) - (b === null) || one.place - other.place;
    return sign * (key === "name" ? names.compare(a, b) : a - b) || one.place - other.place;
  };

  const apply = () => {
    const sign = tools.sort.value.startsWith("-") ? -1 : 1;
    const key = tools.sort.value.replace(/^-/, "");
    const group = tools.show.value.replace(" ", "-");
    const find = tools.find.value.trim().toLowerCase();
    rows.sort((one, other) => compare(one, other, key, sign));
    let visible = 0;
    for (const one of rows) {
      const shown = (!group || one.groups.includes(group)) && one.text.includes(find);
      one.row.hidden = !shown;
      visible += shown;
    }
    body.append(...rows.map((one) => one.row));
    for (const head of heads) {
      head.ariaSort = head.dataset.key !== key ? "none" : sign > 0 ? "ascending" : "descending";
    }
    tools.querySelector("output").textContent = `${visible} of ${rows.length} rows`;
  };

  const remember = () => {
    const state = new URLSearchParams(new FormData(tools));
    for (const [key, text] of [...state]) if (!text) state.delete(key);
    history.replaceState(null, "", `#${state}`);
  };

  const recall = () => {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const select of [tools.sort, tools.show]) {
      const wanted = state.get(select.name);
      const known = Array.from(select.options).some((option) => option.value === wanted);
      select.value = known ? wanted : select.options[0].value;
    }
    tools.find.value = state.get("find") || "";
    apply();
  };

  const change = () => {
    apply();
    remember();
  };

  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const key = head.dataset.key;
      tools.sort.value = tools.sort.value === key ? `-${key}` : key;
      change();
    });
  }
  tools.addEventListener("input", change);
  tools.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", recall);
  tools.hidden = false;
  recall();
})();
