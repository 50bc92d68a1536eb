"""Draws doc/demo.svg from target/demo.json, and doc/bench.svg from target/bench.json: what `make demo` and
`make bench` have written. The same input gives the same bytes.

    pictures.py [FROM [TO]]
"""

import json
import math
import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

MONOSPACE = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SANS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"

# One class a colour, for light and for dark backgrounds.
COLORS = {
    "back": ("#ffffff", "#0d1117"),
    "bar": ("#f0f2f5", "#161b22"),
    "line": ("#d0d7de", "#30363d"),
    "text": ("#1f2328", "#e6edf3"),
    "dim": ("#59636e", "#9198a1"),
    "bot": ("#0a58ca", "#6cb0ff"),
    "reporter": ("#b35900", "#f0a35e"),
    "person": ("#6639ba", "#c297ff"),
    "other": ("#0b6b74", "#56c7d1"),
    "green": ("#116329", "#4ac26b"),
    "yellow": ("#7d4e00", "#d4a72c"),
    "red": ("#b3141d", "#ff7b72"),
    "purple": ("#8250df", "#d2a8ff"),
    "grey": ("#59636e", "#9198a1"),
}
# IRC's numbers of the colours that the bot uses (`result_word` in src/text.rs).
IRC_COLORS = {"03": "green", "07": "yellow", "04": "red", "14": "grey", "06": "purple", "02": "bot", "13": "purple"}


def style(font, size):
    def rules(shade):
        return "".join(
            f".{name}{{fill:{both[shade]}}}.s-{name}{{stroke:{both[shade]}}}" for name, both in COLORS.items()
        )

    return (
        f"<style>text{{font:{size}px {font};white-space:pre}}.b{{font-weight:bold}}.i{{font-style:italic}}"
        f".e{{text-anchor:end}}.m{{text-anchor:middle}}path{{fill:none;stroke-width:2}}{rules(0)}"
        f"@media(prefers-color-scheme:dark){{{rules(1)}}}</style>"
    )


def document(width, height, title, font, size, parts):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    frame = f'<rect class="back s-line" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", style(font, size), frame, *parts, "</svg>", ""])


def text(x, y, classes, content, extra=""):
    return f'<text x="{x:g}" y="{y:g}" class="{classes}"{extra}>{escape(content)}</text>'


def origin(data):
    machine = data["machine"]
    return f"commit {data['commit'] or 'unknown'}, {machine['cpu']}, {machine['cores']} cores, {machine['kernel']}"


# The channel

NICK_END, TEXT_START, ROW = 96, 112, 20
COLUMNS = 86


def colored(line):
    """The pieces of a line with IRC's colours: text and class."""
    pieces = []
    color = ""
    for part in re.split("(\x03\\d\\d|\x0f)", line):
        if part == "\x0f":
            color = ""
        elif part.startswith("\x03"):
            color = IRC_COLORS.get(part[1:], "") + " b"
        elif part:
            pieces.append((part, color))
    return pieces


def wrapped(pieces):
    """Rows of pieces, cut at blanks."""
    rows = [[]]
    used = 0
    for content, color in pieces:
        for word in re.findall(r"\s+|\S+", content):
            if used + len(word) > COLUMNS and word.strip():
                rows.append([])
                used = 0
            rows[-1].append((word, color))
            used += len(word)
    return rows


def spans(row):
    joined = []
    for content, color in row:
        if joined and joined[-1][1] == color:
            joined[-1][0] += content
        else:
            joined.append([content, color])
    return "".join(
        f'<tspan class="{color}">{escape(content)}</tspan>' if color else escape(content) for content, color in joined
    )


def demo(data):
    parts = []
    y = 66
    for line in data["lines"]:
        if told := line.get("told"):
            y += 8
            parts.append(text(TEXT_START, y, "dim i", told))
            y += ROW + 2
            continue
        nick, said = re.fullmatch("[<-](.*?)[>-] (.*)", line["said"], re.DOTALL).groups()
        # The demo's master has another port each time, and no picture needs it.
        said = re.sub(r"http://127\.0\.0\.1:\d+/", "https://ci.example.org/", said)
        who = "bot" if nick == data["bot"] else "person" if nick == "ann" else "other"
        parts.append(text(NICK_END, y, f"{who} b e", nick))
        for row in wrapped(colored(said)):
            parts.append(f'<text x="{TEXT_START}" y="{y}" class="text">{spans(row)}</text>')
            y += ROW
    width, height = 820, y + 26
    head = [
        f'<path class="s-line" style="stroke-width:1" d="M1 36H{width - 1}"/>',
        text(20, 24, "text b", data["channel"]),
        text(width - 20, 24, "dim e", "use_colors = yes, notify_events = problem recovery", ' style="font-size:11px"'),
        f'<path class="s-line" style="stroke-width:1" d="M{(NICK_END + TEXT_START) / 2:g} 36V{y - 4}"/>',
    ]
    foot = text(20, height - 12, "dim", f"make demo: {origin(data)}", ' style="font-size:11px"')
    title = f"{data['channel']} while a team works: buildbot-irc announces a failure and a recovery, and answers"
    return document(width, height, title, MONOSPACE, 13, [*head, *parts, foot])


# The figures


def row(data, group, what, size=None):
    """The medians of a row: ours and the reporter's."""
    for found in data["rows"]:
        if (found["group"], found["what"]) == (group, what) and size in (None, found["builders"]):
            return [side and side["median"] for side in (found["bot"], found["reporter"])]
    raise SystemExit(f"pictures.py: bench.json has no row `{what}`; `make bench ROWS={group}` measures it")


def sizes(data, group, what):
    found = {r["builders"] for r in data["rows"] if (r["group"], r["what"]) == (group, what)}
    return sorted(found)


def short(value, unit):
    if unit == "ms" and value >= 1000:
        value, unit = value / 1000, "s"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def reply_time(data):
    """Reply time against the number of builders, both logarithmic."""
    left, top, width, height = 70, 84, 360, 290
    low, high = -2, 5
    builders = sizes(data, "commands", "status all → first line")
    first, last = math.log10(builders[0]), math.log10(builders[-1])

    def x(size):
        return left + width * (math.log10(size) - first) / (last - first)

    def y(ms):
        return top + height * (high - math.log10(ms)) / (high - low)

    parts = [text(20, 58, "text b", "Reply to a command, first line")]
    labels = {-2: "0.01 ms", -1: "0.1 ms", 0: "1 ms", 1: "10 ms", 2: "0.1 s", 3: "1 s", 4: "10 s", 5: "100 s"}
    for power, label in labels.items():
        parts.append(f'<path class="s-line" style="stroke-width:1" d="M{left} {y(10**power):.1f}H{left + width}"/>')
        parts.append(text(left - 8, round(y(10**power) + 4, 1), "dim e", label))
    for size in builders:
        parts.append(text(round(x(size), 1), top + height + 18, "dim m", f"{size:,}"))
    parts.append(text(left + width / 2, top + height + 36, "dim m", "builders"))
    for side, who in enumerate(["bot", "reporter"]):
        for command, label, dash in (
            ("status all", "status all", ""),
            ("status ONE", "status BUILDER", ' stroke-dasharray="5 4"'),
        ):
            found = [(size, row(data, "commands", f"{command} → first line", size)[side]) for size in builders]
            points = [(round(x(size), 1), round(y(value), 1)) for size, value in found if value]
            line = "L".join(f"{px} {py}" for px, py in points)
            parts.append(f'<path class="s-{who}" d="M{line}"{dash}/>')
            parts += [f'<circle class="{who}" cx="{px}" cy="{py}" r="3"/>' for px, py in points]
            # Solid lines have their name above, on the left of where they rise; dashed ones below.
            px, py = points[1]
            parts.append(text(px, py + 17, f"{who} m", label) if dash else text(px - 4, py - 9, f"{who} e", label))
            if len(points) < len(found):
                px, py = points[-1]
                parts.append(text(px + 8, py + 4, f"{who} i", "not measured beyond"))
    return parts


def bars(x, y, title, entries, unit):
    """Horizontal bars: a label, the class of its colour and a value each."""
    room = 190
    most = max(value for _, _, value in entries)
    parts = [text(x, y, "text b", title)]
    for number, (label, who, value) in enumerate(entries):
        at = y + 14 + 24 * number
        length = max(2, room * value / most)
        parts.append(text(x + 92, at + 13, "dim e", label))
        parts.append(f'<rect class="{who}" x="{x + 100}" y="{at}" width="{length:.1f}" height="17" rx="2"/>')
        parts.append(text(round(x + 106 + length, 1), at + 13, "text", short(value, unit)))
    return parts


def bench(data):
    news = []
    for label, what in ("success", "success"), ("failure", "failure with blame"):
        ours, theirs = row(data, "events", f"end of a build → line, {what}")
        news += [(label, "bot", ours), (label, "reporter", theirs)]
    memory = [
        (f"{size:,}", "bot", row(data, "memory", "resident", size)[0]) for size in sizes(data, "memory", "resident")
    ]
    right = 480
    width, height = 860, 452
    parts = [
        '<rect class="bot" x="20" y="18" width="12" height="12" rx="2"/>',
        text(38, 29, "text", "buildbot-irc"),
        '<rect class="reporter" x="140" y="18" width="12" height="12" rx="2"/>',
        text(158, 29, "text", "Buildbot's own IRC reporter, on the same master"),
        *reply_time(data),
        *bars(right, 58, "From the end of a build to the line in the channel", news, "ms"),
        *bars(right, 222, "Resident memory, by number of builders", memory, "MiB"),
        text(right, 348, "dim", "The reporter has no memory of its own:"),
        text(right, 364, "dim", "it lives in the master, and asks it each time."),
        text(20, height - 14, "dim", f"make bench: medians; {origin(data)}", ' style="font-size:11px"'),
    ]
    title = "buildbot-irc beside Buildbot's own IRC reporter: reply time, news and memory"
    return document(width, height, title, SANS, 12, parts)


def main():
    source, target = (sys.argv[1:] + ["target", "doc"][len(sys.argv) - 1 :])[:2]
    for name, draw, command in ("demo", demo, "make demo"), ("bench", bench, "make bench"):
        file = Path(source, f"{name}.json")
        picture = Path(target, f"{name}.svg")
        if not file.exists():
            print(f"{picture} stays as it is: there is no {file} ({command} writes it)")
            continue
        picture.write_text(draw(json.loads(file.read_text())))
        print(f"{picture}: {picture.stat().st_size} bytes")


main()
