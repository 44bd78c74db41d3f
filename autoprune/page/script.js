"use strict";
// A dot's <title> is what it says; shown at once, and to the keyboard too.
const tip = document.createElement("div");
tip.id = "tip";
tip.setAttribute("role", "status");
tip.hidden = true;
document.body.append(tip);
function say(dot) {
  const box = dot.getBoundingClientRect();
  tip.textContent = dot.getAttribute("aria-label");
  tip.hidden = false;
  tip.style.left = Math.min(box.right + 8, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.max(8, box.top - tip.offsetHeight - 4) + "px";
}
for (const dot of document.querySelectorAll("circle[aria-label]")) {
  dot.addEventListener("pointerenter", () => say(dot));
  dot.addEventListener("focus", () => say(dot));
  for (const leave of ["pointerleave", "blur"]) dot.addEventListener(leave, () => { tip.hidden = true; });
}
// Drag across a picture to look closer; a double click shows all of it again.
for (const figure of document.querySelectorAll("figure.zoom")) {
  const svg = figure.querySelector("svg");
  const whole = svg.getAttribute("viewBox");
  let from = null;
  function place(event) {
    return new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  }
  svg.addEventListener("pointerdown", (event) => { from = place(event); });
  svg.addEventListener("pointerup", (event) => {
    const to = place(event);
    if (from && Math.abs(to.x - from.x) > 8 && Math.abs(to.y - from.y) > 8) {
      svg.setAttribute("viewBox", [Math.min(from.x, to.x), Math.min(from.y, to.y),
        Math.abs(to.x - from.x), Math.abs(to.y - from.y)].join(" "));
    }
    from = null;
  });
  svg.addEventListener("dblclick", () => svg.setAttribute("viewBox", whole));
}
