for (const figure of document.querySelectorAll("figure[data-at]")) {
  const svg = figure.querySelector(":scope > svg"), mark = svg.querySelector(".mark");
  const output = figure.querySelector("output"), note = output.textContent;
  const at = figure.dataset.at.split(" ").map(Number), say = figure.dataset.say.split("\n");
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    let best = 0;
    at.forEach((one, n) => { if (Math.abs(one - x) < Math.abs(at[best] - x)) best = n; });
    mark.setAttribute("x1", at[best]);
    mark.setAttribute("x2", at[best]);
    mark.style.visibility = "visible";
    output.textContent = say[best];
  });
  svg.addEventListener("pointerleave", () => {
    mark.style.visibility = "hidden";
    output.textContent = note;
  });
}
