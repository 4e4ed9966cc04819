"use strict";
/* Tables that are sorted by their columns, and commands that are copied. */
(() => {
  const key = (row, column) => {
    const text = row.children[column].dataset.key ?? "";
    return column === 0 ? text : text === "" ? null : Number(text);
  };
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null); // unknown ones stay last
    return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        for (const body of table.tBodies) {
          const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
          rows.sort((a, b) => compare(key(a, column), key(b, column), sign));
          body.append(...rows);
        }
      });
    });
  }
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentNode.querySelector("code");
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Selected"; // a browser may not give a file the clipboard
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((part) => {
      if (!part.open && part.querySelector("table, dl")) { part.open = true; part.dataset.shut = ""; }
    });
  });
  addEventListener("afterprint", () => {
    document.querySelectorAll("details[data-shut]").forEach((part) => {
      part.open = false;
      delete part.dataset.shut;
    });
  });
})();
