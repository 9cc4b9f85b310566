// Small plots without axes: the newest value on the right, zero at the bottom.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300, HEIGHT = 64;
const KEPT = 60;

export class Plot {
  /** A line in `svg`; its top is a little above the largest value, and at least `top`. */
  constructor(svg, top) {
    this.svg = svg;
    this.top = top;
    this.values = [];
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    this.area = this.path("area");
    this.line = this.path("line");
    this.path("base").setAttribute("d", `M0 ${HEIGHT}H${WIDTH}`);
  }

  path(name) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    return this.svg.appendChild(path);
  }

  add(value) {
    this.values = [...this.values, value].slice(-KEPT);
    const top = Math.max(this.top, 1.15 * Math.max(...this.values));
    const step = WIDTH / (KEPT - 1), first = WIDTH - step * (this.values.length - 1);
    const points = this.values.map((v, i) =>
      `${(first + i * step).toFixed(1)} ${(HEIGHT * (1 - Math.min(v / top, 1))).toFixed(1)}`);
    this.line.setAttribute("d", `M${points.join("L")}`);
    this.area.setAttribute("d", `M${points.join("L")}L${WIDTH} ${HEIGHT}L${first.toFixed(1)} ${HEIGHT}Z`);
  }

  clear() {
    this.values = [];
    this.line.removeAttribute("d");
    this.area.removeAttribute("d");
  }
}
