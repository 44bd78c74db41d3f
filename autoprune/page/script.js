"use strict";
// Pictures are whole without this. It says what a point stands for, looks closer, and hides what a legend names.
document.documentElement.classList.add("live");
const tip = document.createElement("div");
tip.id = "tip";
tip.setAttribute("role", "status");
tip.hidden = true;
document.body.append(tip);

const REACH = 24; // pixels around a dot in which it is meant
const TICKS = 5;

function make(name, facts, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in facts) node.setAttribute(key, facts[key]);
  if (text !== undefined) node.textContent = text;
  return node;
}

// Round numbers along an axis from low to high, about TICKS of them.
function ticks(low, high, percent) {
  const scale = percent ? 100 : 1;
  const rough = (scale * (high - low)) / TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => power * times).find((each) => each >= rough * (1 - 1e-9));
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  for (let n = Math.ceil((scale * low) / step - 1e-9); n * step <= scale * high + 1e-9 * step; n += 1) {
    found.push([(n * step) / scale, (n * step).toFixed(digits) + (percent ? "%" : "")]);
  }
  return found;
}

class Picture {
  constructor(svg) {
    this.svg = svg;
    this.says = new Map();
    for (const mark of svg.querySelectorAll(".mark")) {
      const title = mark.querySelector("title");
      if (!title) continue;
      this.says.set(mark, title.textContent);
      title.remove(); // else the browser shows it as well
    }
    this.now = -1;
    this.hear();
    for (const key of svg.querySelectorAll(".key")) this.legend(key);
  }

  get shown() {
    return [...this.says.keys()].filter((mark) => !mark.closest(".off"));
  }

  hear() {
    const svg = this.svg;
    svg.setAttribute("role", "group");
    if (this.says.size) svg.tabIndex = 0;
    svg.addEventListener("pointermove", (event) => this.point(event));
    svg.addEventListener("pointerdown", (event) => this.point(event));
    svg.addEventListener("pointerleave", () => this.hush());
    svg.addEventListener("blur", () => this.hush());
    svg.addEventListener("keydown", (event) => {
      if (event.target === svg && this.press(event.key)) event.preventDefault();
    });
  }

  point(event) {
    let mark = event.target.closest(".mark");
    let least = REACH;
    for (const dot of mark ? [] : this.shown) {
      if (dot.tagName !== "circle") continue;
      const box = dot.getBoundingClientRect();
      const away = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
      if (away < least) [mark, least] = [dot, away];
    }
    if (mark && this.says.has(mark)) this.say(mark);
    else this.hush();
  }

  say(mark) {
    this.hush();
    this.now = this.shown.indexOf(mark);
    mark.classList.add("now");
    tip.textContent = this.says.get(mark);
    tip.hidden = false;
    const box = mark.getBoundingClientRect();
    const beside = mark.tagName === "circle" ? box.right + 8 : box.left;
    tip.style.left = Math.max(8, Math.min(beside, document.documentElement.clientWidth - tip.offsetWidth - 8)) + "px";
    const above = box.top - tip.offsetHeight - 4;
    tip.style.top = (above > 8 ? above : box.bottom + 4) + "px";
  }

  hush() {
    for (const mark of this.svg.querySelectorAll(".now")) mark.classList.remove("now");
    tip.hidden = true;
  }

  press(key) {
    const shown = this.shown;
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    if (key === "Escape") this.hush();
    else if (key === "Home" && shown.length) this.say(shown[0]);
    else if (key === "End" && shown.length) this.say(shown[shown.length - 1]);
    else if (key in steps && shown.length) this.say(shown[(this.now + steps[key] + shown.length) % shown.length]);
    else return false;
    return true;
  }

  legend(key) {
    const toggle = () => {
      const on = key.getAttribute("aria-pressed") !== "true";
      key.setAttribute("aria-pressed", String(on));
      for (const part of this.svg.querySelectorAll(`[data-series="${key.dataset.key}"]`)) part.classList.toggle("off", !on);
      this.hush();
    };
    key.setAttribute("role", "button");
    key.setAttribute("aria-pressed", "true");
    key.tabIndex = 0;
    key.addEventListener("click", toggle);
    key.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      toggle();
    });
  }
}

// A picture with axes: a part of it may fill it.
class Plot extends Picture {
  constructor(svg) {
    super(svg);
    this.plot = svg.querySelector(".plot");
    [this.left, this.top, this.wide, this.high] = ["x", "y", "width", "height"].map((name) => Number(this.plot.getAttribute(name)));
    this.axes = ["x", "y"].map((name) => {
      const [low, high, percent] = this.plot.dataset[name].split(" ");
      return { low: Number(low), high: Number(high), percent: percent === "%" };
    });
    this.whole = [...this.plot.querySelectorAll("circle, text, polyline, polygon")].map((node) => this.remember(node));
    this.marks = svg.querySelector(".ticks");
    this.grid = this.marks.innerHTML;
    this.button = document.createElement("button");
    this.button.className = "reset";
    this.button.textContent = "show all";
    this.button.hidden = true;
    this.button.addEventListener("click", () => this.look(0, 1, 0, 1));
    svg.parentElement.append(this.button);
    this.drag();
  }

  remember(node) {
    if (node.tagName === "circle") return { node, points: [[Number(node.getAttribute("cx")), Number(node.getAttribute("cy"))]] };
    if (node.tagName === "text") { // a label keeps its distance from its dot
      const dot = node.previousElementSibling;
      return { node, points: [[Number(dot.getAttribute("cx")), Number(dot.getAttribute("cy"))]], above: dot.getAttribute("cy") - node.getAttribute("y") };
    }
    return { node, points: node.getAttribute("points").trim().split(/\s+/).map((pair) => pair.split(",").map(Number)) };
  }

  press(key) {
    const [left, right, top, bottom] = this.view || [0, 1, 0, 1];
    const [x, y] = [(left + right) / 2, (top + bottom) / 2];
    const closer = (by) => this.look(
      Math.max(0, x - (by * (right - left)) / 2), Math.min(1, x + (by * (right - left)) / 2),
      Math.max(0, y - (by * (bottom - top)) / 2), Math.min(1, y + (by * (bottom - top)) / 2));
    if (key === "+" || key === "=") closer(0.5);
    else if (key === "-") closer(2);
    else if (key === "0") this.look(0, 1, 0, 1);
    else return super.press(key);
    return true;
  }

  // Shares of the whole, from the left and from the top.
  look(left, right, top, bottom) {
    const all = right - left > 0.999 && bottom - top > 0.999;
    this.view = all ? null : [left, right, top, bottom];
    this.hush();
    this.plot.classList.toggle("cut", !all);
    this.button.hidden = all;
    const place = ([x, y]) => [
      ((x / this.wide - left) / (right - left)) * this.wide, ((y / this.high - top) / (bottom - top)) * this.high].map((n) => Number(n.toFixed(1)));
    for (const { node, points, above } of this.whole) {
      const moved = points.map(place);
      if (node.tagName === "circle") [node.cx.baseVal.value, node.cy.baseVal.value] = moved[0];
      else if (node.tagName === "text") {
        node.setAttribute("x", moved[0][0]);
        node.setAttribute("y", moved[0][1] - above);
      } else node.setAttribute("points", moved.map((point) => point.join(",")).join(" "));
    }
    if (all) this.marks.innerHTML = this.grid;
    else this.count(left, right, top, bottom);
  }

  count(left, right, top, bottom) {
    const [x, y] = this.axes;
    const across = { low: x.low + left * (x.high - x.low), high: x.low + right * (x.high - x.low) };
    const up = { low: y.high - bottom * (y.high - y.low), high: y.high - top * (y.high - y.low) };
    const foot = this.top + this.high;
    this.marks.replaceChildren();
    for (const [value, text] of ticks(up.low, up.high, y.percent)) {
      const at = this.top + (this.high * (up.high - value)) / (up.high - up.low);
      this.marks.append(
        make("line", { x1: this.left, x2: this.left + this.wide, y1: at, y2: at, stroke: "#d9dee3" }),
        make("text", { x: this.left - 8, y: at + 4, "text-anchor": "end" }, text));
    }
    for (const [value, text] of ticks(across.low, across.high, x.percent)) {
      const at = this.left + (this.wide * (value - across.low)) / (across.high - across.low);
      this.marks.append(
        make("line", { x1: at, x2: at, y1: foot, y2: foot + 5, stroke: "#57606a" }),
        make("text", { x: at, y: foot + 20, "text-anchor": "middle" }, text));
    }
  }

  drag() {
    const svg = this.svg;
    let from = null;
    let band = null;
    const share = (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      return [(at.x - this.left) / this.wide, (at.y - this.top) / this.high].map((n) => Math.min(1, Math.max(0, n)));
    };
    const end = () => {
      if (band) band.remove();
      from = band = null;
    };
    svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch" || event.button || event.target.closest(".key")) return; // touch scrolls
      from = share(event);
      band = svg.appendChild(make("rect", { class: "band" }));
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      if (!from) return;
      const to = share(event);
      const box = { x: this.left + this.wide * Math.min(from[0], to[0]), y: this.top + this.high * Math.min(from[1], to[1]),
        width: this.wide * Math.abs(from[0] - to[0]), height: this.high * Math.abs(from[1] - to[1]) };
      for (const key in box) band.setAttribute(key, box[key]);
    });
    svg.addEventListener("pointerup", (event) => {
      if (!from) return;
      const [[x, y], to] = [from, share(event)];
      const [left, right, top, bottom] = this.view || [0, 1, 0, 1];
      end();
      if (Math.abs(x - to[0]) < 0.02 || Math.abs(y - to[1]) < 0.02) return;
      const inside = (low, high, n) => low + (high - low) * n;
      this.look(inside(left, right, Math.min(x, to[0])), inside(left, right, Math.max(x, to[0])),
        inside(top, bottom, Math.min(y, to[1])), inside(top, bottom, Math.max(y, to[1])));
    });
    svg.addEventListener("pointercancel", end);
    svg.addEventListener("dblclick", () => this.look(0, 1, 0, 1));
  }
}

for (const svg of document.querySelectorAll(".drawing > svg")) new (svg.querySelector(".plot") ? Plot : Picture)(svg);
