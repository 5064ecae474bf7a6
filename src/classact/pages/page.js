(() => {
  "use strict";
  const themes = {
    light: { ink: "#1d2127", soft: "#5b636e", line: "#e4e4df", panel: "#ffffff" },
    dark: { ink: "#e6e7e9", soft: "#a2a9b3", line: "#30353c", panel: "#1e2227" },
  };
  const query = matchMedia("(prefers-color-scheme: dark)");
  const fine = matchMedia("(pointer: fine)").matches;
  const family = getComputedStyle(document.body).fontFamily;
  const plots = [];

  function colours(layout, theme) {
    const update = {
      "font.color": theme.soft, "font.family": family, "font.size": 12.5,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      "hoverlabel.bgcolor": theme.panel, "hoverlabel.bordercolor": theme.line, "hoverlabel.font.color": theme.ink,
      "hoverlabel.align": "left",
    };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
      update[axis + ".gridcolor"] = theme.line;
      update[axis + ".linecolor"] = theme.line;
      update[axis + ".title.font.size"] = 12.5;
      update[axis + ".tickfont.color"] = axis[0] === "y" && layout[axis].ticktext ? theme.ink : theme.soft;
    }
    (layout.annotations || []).forEach((_, i) => { update["annotations[" + i + "].font.color"] = theme.ink; });
    return update;
  }

  function put(target, path, value) {
    const keys = path.replace(/\[(\d+)\]/g, ".$1").split(".");
    const last = keys.pop();
    for (const key of keys) {
      if (typeof target[key] === "string") target[key] = { text: target[key] };
      target = target[key] = target[key] || {};
    }
    target[last] = value;
  }

  function apply(theme) {
    return Promise.all(plots.map(({ element, layout }) => Plotly.relayout(element, colours(layout, theme))));
  }

  const current = () => (query.matches ? themes.dark : themes.light);

  function wrapped(text, width) {
    const lines = [];
    for (const part of text.split(", ")) {
      const last = lines.length - 1;
      if (last >= 0 && (lines[last] + ", " + part).length <= width) lines[last] += ", " + part;
      else lines.push(part);
    }
    return lines.join(",<br>");
  }

  function draw(script) {
    const element = document.getElementById(script.dataset.for);
    const { data, layout } = JSON.parse(script.textContent);
    for (const [path, value] of Object.entries(colours(layout, current()))) put(layout, path, value);
    layout.autosize = true;
    if (element.clientWidth < 520 && layout.yaxis.ticktext && !layout.yaxis.ticktext.join().includes("<br>")) {
      layout.yaxis.ticktext = layout.yaxis.ticktext.map((text) => wrapped(text, 24));
      const lines = Math.max(...layout.yaxis.ticktext.map((text) => text.split("<br>").length));
      layout.height *= lines < 3 ? 1.35 : lines * 0.68;
    }
    if (element.clientWidth < 520 && layout.showlegend) {
      let extra = 0;
      for (const trace of data.filter((trace) => trace.name && trace.showlegend !== false && trace.visible !== false)) {
        trace.name = wrapped(trace.name, 40);
        extra += 17 * (trace.name.split("<br>").length - 1);
      }
      layout.height += extra;
      layout.margin[layout.legend.yanchor === "top" ? "b" : "t"] += extra;
      layout.legend.maxheight = 1;  // else it scrolls above half of the figure
    }
    const map = layout.dragmode === "zoom" && fine;
    if (!map) layout.dragmode = false;
    Plotly.newPlot(element, data, layout, {
      responsive: true, displaylogo: false, displayModeBar: map ? "hover" : false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "toImage"],
    });
    plots.push({ element, layout });
  }

  // A chart in a closed box has no width: it is drawn when the box is first opened.
  const closed = (script) => script.closest("details:not([open])");
  for (const script of document.querySelectorAll("script[data-for]")) if (!closed(script)) draw(script);
  for (const box of document.querySelectorAll("details:not([open])")) {
    const waiting = [...box.querySelectorAll("script[data-for]")];
    box.drawAll = () => waiting.splice(0).forEach(draw);
    box.addEventListener("toggle", () => { if (box.open) box.drawAll(); });
  }

  query.addEventListener("change", () => apply(current()));
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    document.querySelectorAll("details").forEach((item) => {
      item.dataset.was = item.open;
      item.open = true;
      if (item.drawAll) item.drawAll();
    });
    apply(themes.light);
    plots.forEach(({ element }) => Plotly.relayout(element, { autosize: false, width: element.clientWidth }));
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    apply(current());
    plots.forEach(({ element }) => Plotly.relayout(element, { autosize: true, width: null }));
    document.querySelectorAll("details").forEach((item) => { item.open = item.dataset.was === "true"; });
  });

  for (const button of document.querySelectorAll("button[data-view]")) {
    button.addEventListener("click", () => {
      const element = document.getElementById("plot-" + button.dataset.plot);
      Plotly.restyle(element, { visible: element.layout.meta.views[button.dataset.view] });
      for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
    });
  }

  for (const article of document.querySelectorAll(".reason")) {
    for (const item of article.querySelectorAll("li[data-neighbor]")) {
      const thread = article.querySelector('.thread[data-neighbor="' + item.dataset.neighbor + '"]');
      if (!thread) continue;
      const light = (on) => () => {
        thread.classList.toggle("lit", on);
        article.classList.toggle("pointing", on);
      };
      item.addEventListener("mouseenter", light(true));
      item.addEventListener("mouseleave", light(false));
      item.addEventListener("focus", light(true));
      item.addEventListener("blur", light(false));
    }
  }
})();
