// Figures take their ink from the page, so that they follow its light and dark dress, and the printer's.
(() => {
  const figures = () => [...document.querySelectorAll(".js-plotly-plot")];
  const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  const dress = (change) =>
    figures().forEach((figure) => {
      const heatmaps = figure.data.flatMap((trace, i) => (trace.type === "heatmap" ? [i] : []));
      const text = heatmaps.length ? { "textfont.color": change["font.color"] } : {};
      Plotly.update(figure, text, change, heatmaps);
    });
  const paper = { "font.color": "#000", width: 640 };
  const screen = () => ({ "font.color": ink(), width: null, autosize: true });
  dress(screen());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dress(screen()));
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((part) => (part.open = true));
    dress(paper);
  });
  addEventListener("afterprint", () => dress(screen()));
})();
