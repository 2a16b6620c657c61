# SPDX-License-Identifier: BSD-3-Clause
"""The report of bench/compare: one HTML file with tables and inline SVG, nothing from elsewhere."""
import html
import math

from figures import FIGURES, KEYS, key_of

COLOURS = ["#1b6ca8", "#c0392b", "#27ae60", "#8e44ad", "#e67e22", "#16a085", "#7f8c8d", "#2c3e50"]
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { border: 1px solid #ccc; padding: .2em .6em; text-align: right; }
td:first-child, th:first-child { text-align: left; }
td.yes { background: #dff2df; } td.no { background: #f8dddd; }
svg { background: #fff; border: 1px solid #ddd; margin: .5em; }
.plots { display: flex; flex-wrap: wrap; }
"""


def text(value):
    return html.escape(str(value))


def number(value):
    if value >= 1e6:
        return "%.2fM" % (value / 1e6)
    if value >= 1e4:
        return "%.1fk" % (value / 1e3)
    return "%.3g" % value


def table(head, rows):
    out = ["<table><tr>"] + ["<th>%s</th>" % text(h) for h in head] + ["</tr>"]
    for row in rows:
        out.append("<tr>")
        for cell in row:
            cls, value = cell if isinstance(cell, tuple) else ("", cell)
            out.append('<td class="%s">%s</td>' % (cls, text(value)))
        out.append("</tr>")
    return "".join(out + ["</table>"])


def log_ticks(lo, hi):
    return [10.0 ** e for e in range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)]


def plot(title, series, x_name, y_name, x_log=False):
    """series: {name: [(x, y)]}; both axes fitted, y from 0."""
    points = [p for line in series.values() for p in line]
    if not points:
        return ""
    width, height, left, bottom, top = 460, 300, 60, 40, 30
    xs, ymax = [p[0] for p in points], max(p[1] for p in points) or 1
    lo, hi = min(xs), max(xs)
    if x_log:
        lo, hi = max(lo, 0.01), max(hi, 0.02)
        ticks = log_ticks(lo, hi)
        lo, hi = ticks[0], ticks[-1]
    else:
        ticks = sorted(set(xs))
    if hi == lo:
        hi = lo + 1

    def place(x, y):
        part = (math.log(max(x, lo) / lo) / math.log(hi / lo)) if x_log else (x - lo) / (hi - lo)
        return (left + part * (width - left - 20),
                height - bottom - y / ymax * (height - bottom - top))

    out = ['<svg width="%d" height="%d" role="img"><text x="%d" y="18" font-size="13">%s</text>'
           % (width, height, left, text(title))]
    for t in ticks:
        x, _ = place(t, 0)
        out.append('<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#eee"/><text x="%.1f" y="%d" '
                   'font-size="10" text-anchor="middle">%s</text>'
                   % (x, top, x, height - bottom, x, height - bottom + 14, number(t)))
    for i in range(5):
        y = ymax * i / 4
        _, py = place(lo, y)
        out.append('<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#eee"/><text x="%d" y="%.1f" '
                   'font-size="10" text-anchor="end">%s</text>'
                   % (left, py, width - 20, py, left - 4, py + 3, number(y)))
    out.append('<text x="%d" y="%d" font-size="11">%s</text><text x="6" y="%d" font-size="11" '
               'transform="rotate(-90 12 %d)" text-anchor="middle">%s</text>'
               % (width // 2, height - 8, text(x_name), height // 2, height // 2, text(y_name)))
    for i, (name, line) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join("%.1f,%.1f" % place(x, y) for x, y in line)
        out.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="1.8"/>'
                   % (path, colour))
        if len(line) < 12:
            out.extend('<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>' % (*place(x, y), colour)
                       for x, y in line)
        out.append('<text x="%d" y="%d" font-size="11" fill="%s">%s</text>'
                   % (left + 8, top + 14 + 13 * i, colour, text(name)))
    return "".join(out + ["</svg>"])


def title_of(row):
    return "%s, %d thread%s, %d %% writes, %d MiB%s, %s, %s, %d %%, equal %s" % (
        row["workload"], row["threads"], "" if row["threads"] == 1 else "s", row["write"],
        row["size"] >> 20, ", %d VMs" % row["vms"] if row["vms"] > 1 else "",
        row["kind"], row["content"], row["memory"], row["reading"])


def cdf_plots(measured):
    groups = {}
    for m in measured:
        if m.get("cdf"):
            groups.setdefault(key_of(m), {}).setdefault(m["system"], []).append(m)
    out = []
    for systems in groups.values():
        series = {}
        for system, rows in systems.items():
            # The round whose throughput is the middle one stands for the side.
            rows = sorted(rows, key=lambda r: r["accesses_s"])
            series[system] = [(us, q) for q, us in rows[len(rows) // 2]["cdf"]]
        first = next(iter(systems.values()))[0]
        out.append(plot(title_of(first), series, "latency of a fault, us", "part of the faults",
                        x_log=True))
    return out


def memory_plots(summary_rows):
    groups = {}
    for row in summary_rows:
        if "accesses_s" in row:
            key = tuple(row[k] for k in KEYS if k != "memory")
            groups.setdefault(key, []).append(row)
    out = []
    for rows in groups.values():
        if len({r["memory"] for r in rows}) < 2:
            continue
        series = {}
        for r in sorted(rows, key=lambda r: r["memory"]):
            series.setdefault(r["system"], []).append((r["memory"], r["accesses_s"]["median"]))
        out.append(plot(title_of(dict(rows[0], memory=0)).replace(", 0 %", ""), series,
                        "memory given, % of what it wants", "accesses/s"))
    return out


def figure_rows(rows, figures):
    for row in rows:
        cells = [title_of(row), row["system"]]
        for f in figures:
            s = row.get(f)
            cells.append("" if not s else "%s (%s to %s)" % (number(s["median"]), number(s["min"]),
                                                            number(s["max"])))
        yield cells


def page(result):
    figures = list(FIGURES)
    names = [FIGURES[f][2] for f in figures]
    goal_rows = [[("", "%s, %s, %d thread(s), %d %% writes" % (
        g["kind"], g["workload"], g["threads"], g["write"])), g["system"], FIGURES[g["figure"]][2],
        "%s %.2f" % (">=" if g["at_least"] else "<=", g["goal"]),
        ("yes" if g["reached"] else "no", "%.2f (%.2f to %.2f)" % (
            g["ratio"]["median"], g["ratio"]["min"], g["ratio"]["max"]))]
                 for g in result["goals"]]
    head = result["machine"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Ebb compared</title><style>%s"
        "</style><h1>Ebb beside the kernel's own swap</h1>" % STYLE,
        "<p>%s; %d CPUs, %s; load average %s before, %s after; %d rounds, interleaved.</p>" % (
            text(head["kernel"]), head["cpus"], text(head["model"]), head["load_before"],
            head["load_after"], result["options"]["rounds"]),
        "<p>Memory: <b>equal resident</b> gives every side the same resident memory; <b>equal "
        "total</b> the same in all, with pools, stores, tables and the daemon counted: as much as "
        "swap to zram with lz4 takes at that resident memory.</p>",
    ]
    if result["left_out"]:
        parts.append("<p>Left out: %s</p>" % "; ".join(
            "%s (%s)" % (text(k), text(v)) for k, v in result["left_out"].items()))
    if goal_rows:
        parts += ["<h2>Goals</h2>", table(["workload", "side", "figure", "goal", "ratio"],
                                          goal_rows)]
    parts += ["<h2>Ratios to %s, round by round: median (range)</h2>" % text(result["against"]),
              table(["workload", "side"] + names, figure_rows(result["ratios"], figures)),
              "<h2>Figures: median (range)</h2>",
              table(["workload", "side"] + names, figure_rows(result["summary"], figures))]
    plots = memory_plots(result["summary"])
    if plots:
        parts += ["<h2>Throughput and memory given</h2><div class=plots>"] + plots + ["</div>"]
    parts += ["<h2>Latency of faults</h2><div class=plots>"] + cdf_plots(result["measured"])
    return "\n".join(parts + ["</div></html>\n"])
