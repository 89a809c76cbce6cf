// What scrolls sideways can be reached by the keyboard.
addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll("article pre, article .table-wrapper")) {
    if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
  }
});
