// Tables and figures wider than the page scroll inside a box of their own, which the keyboard can reach.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("article table")) {
    if (table.parentElement.classList.contains("resid-scroll")) continue;
    const box = document.createElement("div");
    box.className = "resid-scroll";
    table.replaceWith(box);
    box.append(table);
    if (box.scrollWidth > box.clientWidth) {
      box.tabIndex = 0;
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", "Table, scrolls sideways");
    }
  }
  for (const figure of document.querySelectorAll("article figure.align-default")) {
    if (figure.scrollWidth > figure.clientWidth && getComputedStyle(figure).overflowX === "auto") figure.tabIndex = 0;
  }
});
