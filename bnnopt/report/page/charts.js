"use strict";
// Draws the pictures of the page with D3, from the JSON beside them. All sizes are in bytes, all
// times are positions of nodes in the step.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [NAME, CLASS, BYTES, FIRST, LAST, OFFSET, CODEC, SHAPE, MADE_BY] = d3.range(9);
  const SCRATCH = data.classes.length - 1;
  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

  function size(bytes) {
    let unit = 0;
    for (; Math.abs(bytes) >= 1024 && unit < UNITS.length - 1; unit += 1) bytes /= 1024;
    return unit ? `${bytes.toFixed(2)} ${UNITS[unit]}` : `${Math.round(bytes)} B`;
  }

  // Ticks at round numbers of the unit in which the largest value is read.
  function byteTicks(most, count) {
    const unit = 1024 ** Math.min(4, Math.max(0, Math.floor(Math.log(most || 1) / Math.log(1024))));
    return d3.ticks(0, most / unit, count).map((tick) => tick * unit);
  }

  const short = (bytes) => (bytes ? size(bytes).replace(/\.?0+ /, " ") : "0");

  // A version with what the pictures need: at each node the tensors from the bottom to the top.
  function prepared(version) {
    const n = version.nodes.length;
    const scratch = new Map(version.scratch.map(([at, , bytes]) => [at, bytes]));
    const stacks = d3.range(n).map(() => []);
    const tensors = d3.sort(version.tensors, (t) => t[CLASS], (t) => t[FIRST], (t) => -t[BYTES]);
    for (const tensor of tensors) {
      const always = tensor[OFFSET] < 0;
      for (let at = always ? 0 : tensor[FIRST]; at <= (always ? n - 1 : tensor[LAST]); at += 1) {
        stacks[at].push(tensor);
      }
    }
    stacks.forEach((stack, at) => {
      const extra = [["scratch memory", scratch.get(at) ?? 0], ["alignment and gaps", version.gaps]];
      for (const [name, bytes] of extra) {
        if (bytes) stack.push([name, SCRATCH, bytes, at, at, -1, "", "", ""]);
      }
    });
    const byClass = stacks.map((stack) => {
      const sums = data.classes.map(() => 0);
      for (const tensor of stack) sums[tensor[CLASS]] += tensor[BYTES];
      return sums;
    });
    const backward = version.nodes.findIndex((node) => node[2] !== "forward");
    return { ...version, stacks, byClass, backward: backward < 0 ? n : backward };
  }

  const versions = data.versions.map(prepared);
  const chosen = { left: 0, right: versions.length - 1, scale: true, measure: "peak" };
  const output = document.getElementById("tensor");
  const tip = d3.select("body").append("div").attr("class", "tip").attr("hidden", "")
    .attr("aria-hidden", "true");

  function facts(version, tensor, at) {
    const [name, operator, phase, kernel] = version.nodes[at];
    const born = version.nodes[tensor[FIRST]];
    const always = tensor[OFFSET] < 0 && tensor[CLASS] !== SCRATCH;
    const lines = [
      `${size(tensor[BYTES])}, ${data.classes[tensor[CLASS]]}`,
      tensor[SHAPE] && `${tensor[SHAPE]}, kept as ${tensor[CODEC]}`,
      always ? "there all the time"
        : `made at node ${tensor[FIRST]}, ${born[0]} (${born[1]}), there until node ${tensor[LAST]}`,
      tensor[MADE_BY] ? `made so by ${tensor[MADE_BY]}`
        : tensor[CLASS] !== SCRATCH && "as it was before any pass",
      `at node ${at}: ${name} (${operator}), ${phase}${kernel ? `, on ${kernel}` : ""}`,
    ];
    return [tensor[NAME], ...lines.filter(Boolean)];
  }

  function write(target, lines) {
    target.selectChildren().remove();
    target.text("");
    target.append("b").text(lines[0]);
    for (const line of lines.slice(1)) target.append("div").text(line);
  }

  function tell(lines, event) {
    write(d3.select(output), lines);
    if (!event) return tip.attr("hidden", "");
    write(tip, lines);
    tip.attr("hidden", null);
    const box = tip.node().getBoundingClientRect();
    const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
    const y = event.clientY + box.height + 24 > innerHeight
      ? event.clientY - box.height - 14 : event.clientY + 18;
    return tip.style("left", `${Math.max(8, x)}px`).style("top", `${Math.max(8, y)}px`);
  }

  const hide = () => tip.attr("hidden", "");

  function canvas(holder, height, label) {
    holder.selectAll("svg").remove();
    const width = Math.max(240, holder.node().clientWidth);
    return [width, holder.append("svg").attr("viewBox", `0 0 ${width} ${height}`)
      .attr("height", height).attr("role", "img").attr("aria-label", label)];
  }

  function yAxis(svg, y, left, most) {
    svg.append("g").attr("class", "axis").attr("transform", `translate(${left},0)`)
      .call(d3.axisLeft(y).tickValues(byteTicks(most, 5)).tickFormat(short).tickSize(4));
  }

  // Forward and backward, as two grounds with a name below.
  function grounds(svg, version, x, top, bottom) {
    const n = version.nodes.length;
    const parts = [["forward", 0, version.backward], ["backward and update", version.backward, n]];
    for (const [name, from, to] of parts) {
      if (to <= from) continue;
      if (from) {
        svg.append("rect").attr("class", "shade").attr("x", x(from)).attr("y", top)
          .attr("width", x(to) - x(from)).attr("height", bottom - top);
      }
      svg.append("text").attr("x", (x(from) + x(to)) / 2).attr("y", bottom + 15)
        .attr("text-anchor", "middle").text(name);
    }
  }

  // Lets the pointer and the keys choose a tensor; `find` gives [tensor, node] at a point.
  function explore(svg, version, find, show) {
    const now = { at: version.fullest, index: 0 };
    const choose = (tensor, at, event) => {
      show(tensor, at);
      tell(facts(version, tensor, at), event);
    };
    const pointed = (event) => {
      const found = find(...d3.pointer(event, svg.node()));
      if (found) {
        [, now.at] = found;
        now.index = Math.max(0, version.stacks[now.at].indexOf(found[0]));
        choose(...found, event);
      } else hide();
    };
    const keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    svg.attr("tabindex", 0).attr("role", "application")
      .on("pointermove", pointed).on("pointerdown", pointed).on("pointerleave", hide)
      .on("keydown", (event) => {
        if (!keys[event.key]) return;
        event.preventDefault();
        const [across, up] = keys[event.key];
        const before = version.stacks[now.at][now.index];
        now.at = Math.min(version.nodes.length - 1, Math.max(0, now.at + across));
        const stack = version.stacks[now.at];
        const same = stack.indexOf(before);
        const start = same < 0 ? Math.min(now.index, stack.length - 1) : same;
        now.index = Math.min(stack.length - 1, Math.max(0, start + up));
        choose(stack[now.index], now.at);
      });
  }

  function timeline(holder, version, most) {
    const [height, left, top, right] = [290, 66, 22, 8];
    const bottom = height - 24;
    const words = `Memory over the step, ${version.label}: peak ${size(version.peak)} at node `
      + `${version.fullest} of ${version.nodes.length}; kept for backward ${size(version.saved)}`;
    const [width, svg] = canvas(holder, height, words);
    const n = version.nodes.length;
    const x = d3.scaleLinear([0, n], [left, width - right]);
    const y = d3.scaleLinear([0, most * 1.02], [bottom, top]);
    grounds(svg, version, x, top, bottom);
    const stack = d3.stack().keys(d3.range(data.classes.length)).value((sums, key) => sums[key]);
    const area = d3.area().x((d, i) => x(i)).y0((d) => y(d[0])).y1((d) => y(d[1]))
      .curve(d3.curveStepAfter);
    for (const layer of stack([...version.byClass, version.byClass[n - 1]])) {
      svg.append("path").attr("class", `layer f${layer.key}`).attr("d", area(layer));
    }
    yAxis(svg, y, left, most * 1.02);
    const middle = x(version.fullest + 0.5);
    svg.append("line").attr("class", "mark").attr("x1", middle).attr("x2", middle)
      .attr("y1", y(version.peak)).attr("y2", bottom);
    svg.append("text").attr("class", "strong").attr("y", y(version.peak) - 6)
      .attr("x", Math.min(width - right, Math.max(left, middle)))
      .attr("text-anchor", middle > width * 0.7 ? "end" : middle < width * 0.3 ? "start" : "middle")
      .text(`peak ${size(version.peak)}`);
    const frame = svg.append("rect").attr("class", "chosen").attr("visibility", "hidden");
    const line = svg.append("line").attr("class", "here").attr("y1", top).attr("y2", bottom)
      .attr("visibility", "hidden");
    const show = (tensor, at) => {
      const stackHere = version.stacks[at];
      const base = d3.sum(stackHere.slice(0, stackHere.indexOf(tensor)), (t) => t[BYTES]);
      line.attr("visibility", null).attr("x1", x(at + 0.5)).attr("x2", x(at + 0.5));
      frame.attr("visibility", null).attr("x", x(at)).attr("width", Math.max(3, x(at + 1) - x(at)))
        .attr("y", y(base + tensor[BYTES])).attr("height", Math.max(2, y(base) - y(base + tensor[BYTES])));
    };
    explore(svg, version, (px, py) => {
      const at = Math.floor(x.invert(px));
      if (at < 0 || at >= n || py > bottom || py < top) return null;
      let height_ = y.invert(py);
      for (const tensor of version.stacks[at]) {
        height_ -= tensor[BYTES];
        if (height_ <= 0) return [tensor, at];
      }
      return null;
    }, show);
  }

  function arenaMap(holder, version, most) {
    const [height, left, top, right] = [290, 66, 8, 8];
    const bottom = height - 24;
    const words = `The arena, ${version.label}: ${size(version.arena)}, each tensor at its offset`;
    const [width, svg] = canvas(holder, height, words);
    const n = version.nodes.length;
    const x = d3.scaleLinear([0, n], [left, width - right]);
    const y = d3.scaleLinear([0, most], [bottom, top]);
    grounds(svg, version, x, top, bottom);
    const scratch = version.scratch.map(([at, offset, bytes]) =>
      ["scratch memory", SCRATCH, bytes, at, at, offset, "", "", ""]);
    const blocks = [...version.tensors.filter((t) => t[OFFSET] >= 0), ...scratch];
    svg.append("g").selectAll("rect").data(blocks).join("rect")
      .attr("class", (t) => `block f${t[CLASS]}`)
      .attr("x", (t) => x(t[FIRST])).attr("width", (t) => Math.max(1, x(t[LAST] + 1) - x(t[FIRST])))
      .attr("y", (t) => y(t[OFFSET] + t[BYTES]))
      .attr("height", (t) => Math.max(0.5, y(t[OFFSET]) - y(t[OFFSET] + t[BYTES])));
    yAxis(svg, y, left, most);
    const frame = svg.append("rect").attr("class", "chosen").attr("visibility", "hidden");
    explore(svg, version, (px, py) => {
      const at = Math.floor(x.invert(px));
      const offset = y.invert(py);
      const found = blocks.find((t) => t[FIRST] <= at && at <= t[LAST]
        && t[OFFSET] <= offset && offset < t[OFFSET] + t[BYTES]);
      return found && at < n ? [found, at] : null;
    }, (t) => {
      frame.attr("visibility", t[OFFSET] < 0 ? "hidden" : null)
        .attr("x", x(t[FIRST])).attr("width", Math.max(2, x(t[LAST] + 1) - x(t[FIRST])))
        .attr("y", y(t[OFFSET] + t[BYTES])).attr("height", Math.max(2, y(t[OFFSET]) - y(t[OFFSET] + t[BYTES])));
    });
  }

  function waterfall() {
    const holder = d3.select("#waterfall");
    const version = versions[chosen.right].passes.length ? versions[chosen.right]
      : versions.findLast((v) => v.passes.length);
    if (!version) return holder.text("");
    const column = chosen.measure === "peak" ? 4 : 5;
    const base = data.base[chosen.measure === "peak" ? 0 : 1];
    const [row, top] = [22, 8];
    let last = base;
    const bars = version.passes.map((pass) => {
      const bar = { name: pass[0], lossless: pass[1], numbers: pass[2], rewrites: pass[3],
        from: last, to: pass[column], skipped: pass[6] };
      last = bar.to;
      return bar;
    });
    const rows = [{ name: "before any pass", total: base }, ...bars, { name: version.label, total: last }];
    const height = top + rows.length * row + 24;
    const words = `What each pass of ${version.label} takes away: from ${size(base)} to ${size(last)}`;
    const [width, svg] = canvas(holder, height, words);
    const narrow = width < 560;
    const left = narrow ? 132 : 190;
    const most = d3.max(rows, (d) => d.total ?? Math.max(d.from, d.to));
    const x = d3.scaleLinear([0, most], [left, width - (narrow ? 66 : 190)]);
    const hatch = svg.append("defs").append("pattern").attr("id", "lossy").attr("width", 7)
      .attr("height", 7).attr("patternUnits", "userSpaceOnUse").attr("patternTransform", "rotate(45)");
    hatch.append("rect").attr("class", "lossy-ground").attr("width", 7).attr("height", 7);
    hatch.append("line").attr("class", "lossy-line").attr("y2", 7);
    const lines = svg.selectAll("g.row").data(rows).join("g").attr("class", "row")
      .attr("transform", (d, i) => `translate(0,${top + i * row})`);
    lines.append("text").attr("x", left - 8).attr("y", 14).attr("text-anchor", "end")
      .attr("class", (d) => (d.total !== undefined || d.to !== d.from ? "strong" : ""))
      .style("font-size", narrow ? "10px" : null).text((d) => d.name);
    lines.append("rect").attr("y", 3).attr("height", row - 7).attr("rx", 2)
      .attr("class", (d) => (d.total !== undefined ? "total" : d.to > d.from ? "grows" : d.lossless ? "lossless" : ""))
      .attr("fill", (d) => (d.total === undefined && !d.lossless && d.to <= d.from ? "url(#lossy)" : null))
      .attr("x", (d) => x(d.total !== undefined ? 0 : Math.min(d.from, d.to)))
      .attr("width", (d) => (d.total !== undefined ? x(d.total) - x(0) : Math.abs(x(d.to) - x(d.from))));
    lines.append("line").attr("class", "link").attr("y1", 3).attr("y2", row + 3)
      .attr("x1", (d) => x(d.total ?? d.to)).attr("x2", (d) => x(d.total ?? d.to))
      .attr("visibility", (d, i) => (i === rows.length - 1 ? "hidden" : null));
    lines.append("text").attr("y", 14).attr("x", (d) => x(d.total ?? Math.max(d.from, d.to)) + 6)
      .text((d) => {
        if (d.total !== undefined) return size(d.total);
        if (!d.rewrites) return narrow ? "" : "nothing to do";
        const change = d.to === d.from ? "no change" : `${d.to > d.from ? "+" : "−"}${size(Math.abs(d.to - d.from))}`;
        return narrow ? change.replace("no change", "") : `${change}, ${d.numbers}`;
      });
    svg.append("g").attr("class", "axis").attr("transform", `translate(0,${top + rows.length * row + 4})`)
      .call(d3.axisBottom(x).tickValues(byteTicks(most, narrow ? 3 : 6)).tickFormat(short).tickSize(4));
    return lines.on("pointermove pointerdown", (event, d) => {
      if (d.total !== undefined) return hide();
      const lines_ = [`${size(d.from)} → ${size(d.to)}`, d.numbers, `${d.rewrites} rewrites, ${d.skipped} left alone`];
      write(tip, [d.name, ...lines_]);
      return tip.attr("hidden", null).style("left", `${Math.min(event.clientX + 14, innerWidth - 250)}px`)
        .style("top", `${event.clientY + 16}px`);
    }).on("pointerleave", hide);
  }

  function pair(holder, draw, most) {
    const sides = [versions[chosen.left], versions[chosen.right]];
    const shared = d3.max(sides, most);
    const panels = d3.select(holder).selectAll("div").data(sides).join("div");
    panels.selectAll("h3").data((v) => [v]).join("h3").text((v) => v.label)
      .append("small").text((v) => `${size(most(v))}, ${v.nodes.length} nodes`);
    panels.each(function each(version) {
      draw(d3.select(this), version, chosen.scale ? shared : most(version));
    });
  }

  function draw() {
    pair("#timelines", timeline, (version) => version.peak);
    pair("#maps", arenaMap, (version) => version.arena);
    waterfall();
    frontier();
  }

  // What a budget buys: memory across, a row for each loss class, times beside the points.
  function frontier() {
    const points = data.frontier;
    if (!points.length) return;
    document.getElementById("budget").hidden = false;
    const rows = [...d3.rollup(d3.sort(points, (p) => p.loss, (p) => p.cost), (group) => group, (p) => p.title)];
    const [row, top] = [30, 6];
    const height = top + rows.length * row + 40;
    const words = points.map((p) => `${size(p.peak_bytes)}: ${p.title}`).join("; ");
    const [width, svg] = canvas(d3.select("#frontier"), height, words);
    const narrow = width < 560;
    const left = narrow ? 70 : 84;
    const x = d3.scaleLinear([0, d3.max(points, (p) => p.peak_bytes) * 1.05], [left, width - 48]);
    const bottom = top + rows.length * row;
    svg.append("g").attr("class", "axis").attr("transform", `translate(0,${bottom})`)
      .call(d3.axisBottom(x).tickValues(byteTicks(x.domain()[1], narrow ? 3 : 6)).tickFormat(short));
    svg.append("text").attr("x", width - 20).attr("y", bottom + 34).attr("text-anchor", "end")
      .text("planned peak");
    rows.forEach(([title, group], i) => {
      const y = top + i * row + row / 2;
      const lossy = group[0].lossless ? 0 : title.split(",").length;
      svg.append("line").attr("class", "link").attr("x1", left).attr("x2", width - 20)
        .attr("y1", y).attr("y2", y);
      svg.append("text").attr("class", "strong").attr("x", left - 8).attr("y", y + 4)
        .attr("text-anchor", "end").text(lossy ? `${lossy} lossy` : title);
      const marks = svg.append("g").selectAll("g").data(group).join("g")
        .attr("transform", (p) => `translate(${x(p.peak_bytes)},${y})`);
      marks.filter((p) => p.is_chosen).append("circle").attr("class", "chosen").attr("r", 10);
      marks.append("circle").attr("r", 6).attr("class", (p) => `point${p.lossless ? "" : " lossy"}`);
      marks.append("text").attr("x", 13).attr("y", -5).text((p) => `${p.cost.toFixed(2)}x`);
      marks.on("pointermove pointerdown", (event, p) => {
        write(tip, [size(p.peak_bytes), p.title, `${p.cost.toFixed(3)} of the fastest step's time`]);
        tip.attr("hidden", null).style("left", `${Math.min(event.clientX + 14, innerWidth - 250)}px`)
          .style("top", `${event.clientY + 16}px`);
      }).on("pointerleave", hide);
    });
  }

  function control(holder, label, options, value, set) {
    const select = d3.select(holder).append("label").text(label).append("select");
    select.selectAll("option").data(options).join("option").attr("value", (o) => o[0])
      .property("selected", (o) => o[0] === value).text((o) => o[1]);
    select.on("change", (event) => {
      set(event.target.value);
      draw();
    });
  }

  d3.select("#legend").selectAll("li").data(data.classes.toReversed()).join("li").each(function each(name) {
    const item = d3.select(this);
    item.append("i").attr("class", `key k${data.classes.indexOf(name)}`).attr("aria-hidden", "true");
    item.append("span").text(name);
  });
  const labels = versions.map((version, i) => [i, version.label]);
  control("#controls", "left", labels, chosen.left, (value) => { chosen.left = Number(value); });
  control("#controls", "right", labels, chosen.right, (value) => { chosen.right = Number(value); });
  control("#controls", "scale", [[1, "the same"], [0, "each its own"]], 1,
    (value) => { chosen.scale = value === "1"; });
  control("#ledger-controls", "what is measured", [["peak", "planned peak"], ["saved", "kept for backward"]],
    "peak", (value) => { chosen.measure = value; });
  draw();
  let width = innerWidth;
  addEventListener("resize", () => {
    if (width !== innerWidth) draw();
    width = innerWidth;
  });
  addEventListener("scroll", hide, { passive: true });
})();
