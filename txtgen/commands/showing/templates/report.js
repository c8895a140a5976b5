"use strict";
// Pointing at one curve reads all of them at the same step.
const curves = [...document.querySelectorAll("figure")].map(figure => ({
  figure,
  svg: figure.querySelector("svg"),
  cursor: figure.querySelector(".cursor"),
  lines: JSON.parse(figure.dataset.points).map((points, number) => ({
    points,
    held: figure.querySelectorAll(".held")[number],
    reading: figure.querySelectorAll(".reading span")[number],
  })),
}));
const latest = curves.map(curve => curve.lines.map(line => line.reading.textContent));

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - points[low - 1][0] < points[low][0] - x ? points[low - 1] : points[low];
}

function point(x) {
  for (const curve of curves) {
    let across = 0;
    for (const line of curve.lines) {
      const [left, top, step, value] = nearest(line.points, x);
      line.held.setAttribute("cx", left);
      line.held.setAttribute("cy", top);
      line.reading.textContent = `${value} at ${step}`;
      across ||= left;
    }
    curve.cursor.setAttribute("x1", across);
    curve.cursor.setAttribute("x2", across);
    curve.figure.classList.add("pointing");
  }
}

function leave() {
  curves.forEach((curve, number) => {
    curve.figure.classList.remove("pointing");
    curve.lines.forEach((line, place) => { line.reading.textContent = latest[number][place]; });
  });
}

for (const {svg} of curves) {
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    point((event.clientX - box.left) / box.width * svg.viewBox.baseVal.width);
  });
  svg.addEventListener("pointerleave", leave);
}
