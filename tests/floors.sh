#!/bin/sh
# Checks which room of src/ imports which; `make check` runs it. A room is a module. It imports from
# floors below its own, and on its own floor from its wing (its folder) or from what stands further
# down this table. Prints each breach as file:line. Test modules may import what they like.
set -eu
cd "$(dirname "$0")/.."

# Floor, then its rooms. `irc` and `config` alone are the mod.rs of the folder.
table='
7 main cli
6 bot bot/changes bot/connection bot/event_queue bot/invocations bot/reply_limiter
5 commands commands/authority commands/control commands/queries commands/settings
5 text text/changes
4 routing routing/buildsets routing/watches
4 irc/session irc/registration irc/bouncer irc/services irc/nick irc/channels irc/accounts irc/liveness
4 irc irc/history irc/modes irc/isupport irc/outbox irc/pacing irc/numerics
4 master master/poller master/jobs master/diagnosis master/force master/sync master/pending
3 master/events master/client
2 state_file
2 master/details master/model master/builder master/resources master/http
2 net systemd
2 config config/ini config/keys config/values config/error
1 irc/wire log names words notify_events sanitize encoding outcome backoff clock
'
# What a wing must not know: `wing: rooms`.
strangers='
master: irc commands routing text bot cli main
irc: commands routing master bot text cli main
config: irc
'

files=$(find src -name '*.rs' ! -name tests.rs | LC_ALL=C sort)
# shellcheck disable=SC2086 # the names of our files have no blanks
awk -v table="$table" -v strangers="$strangers" '
function room_of(file) {
    sub(/^src\//, "", file); sub(/\.rs$/, "", file); sub(/\/mod$/, "", file)
    return file
}
function wing_of(room) { sub(/\/.*/, "", room); return room }

# The room that a path like `master/model/Build` leads into; empty if that is no room.
function find_room(path) {
    while (path != "" && !(path in floor))
        if (!sub(/\/[^\/]*$/, "", path)) return ""
    return path
}

function breach(why) {
    print FILENAME ":" line ": " why
    breaches++
}

# One path, like `crate::names::Name` or `super::wire`.
function check(path,   base, target, same_wing) {
    base = room
    gsub(/[ \t]/, "", path)
    if (path ~ /^crate::/) {
        base = ""
        sub(/^crate::/, "", path)
    } else if (path ~ /^super::/) {
        while (sub(/^super::/, "", path))
            if (!sub(/\/[^\/]*$/, "", base)) base = ""
    } else if (path ~ /^self::/) {
        sub(/^self::/, "", path)
    }
    gsub(/::/, "/", path)
    target = find_room(base == "" ? path : base "/" path)
    if (target == "" || target == room) return
    imports++
    same_wing = wing_of(room) == wing_of(target)
    if (floor[target] > floor[room])
        breach(room " (floor " floor[room] ") imports " target " (floor " floor[target] ")")
    else if (floor[target] == floor[room] && !same_wing && place[target] < place[room])
        breach(room " imports " target ", which stands above it on floor " floor[room])
    if (!same_wing && (wing_of(room), wing_of(target)) in stranger)
        breach(room " imports " target ", and " wing_of(room) " must not know " wing_of(target))
}

# All paths of `a::{b, c::{d, e}}`.
function expand(prefix, text,   i, c, depth, start, part, open) {
    depth = 0; start = 1
    for (i = 1; i <= length(text) + 1; i++) {
        c = substr(text, i, 1)
        if (c == "{") depth++
        else if (c == "}") depth--
        else if ((c == "," || c == "") && depth == 0) {
            part = substr(text, start, i - start)
            start = i + 1
            gsub(/^[ \t]+|[ \t]+$/, "", part)
            if (part == "") continue
            open = index(part, "{")
            if (open) expand(prefix substr(part, 1, open - 1), substr(part, open + 1, length(part) - open - 1))
            else { sub(/[ \t]+as .*/, "", part); check(prefix part) }
        }
    }
}

BEGIN {
    rows = split(table, row, "\n")
    for (i = 1; i <= rows; i++) {
        words = split(row[i], word, " ")
        for (j = 2; j <= words; j++) { floor[word[j]] = word[1]; place[word[j]] = ++places }
    }
    rows = split(strangers, row, "\n")
    for (i = 1; i <= rows; i++) {
        words = split(row[i], word, " ")
        sub(/:$/, "", word[1])
        for (j = 2; j <= words; j++) stranger[word[1], word[j]] = 1
    }
}

FNR == 1 {
    room = room_of(FILENAME)
    seen[room] = 1
    statement = ""; test = 0; children = ""
    if (!(room in floor)) { line = 1; breach(room " has no floor in tests/floors.sh") }
}

# What is only for tests: one line that ends in a semicolon, or a block up to its closing brace.
/^[ \t]*#\[cfg\(test\)\]/ { test = 1; indent = $0; sub(/#.*/, "", indent); next }
test == 1 {
    if ($0 ~ /^[ \t]*#\[/) next
    test = ($0 ~ /;[ \t]*$/ || $0 ~ /\{.*\}[ \t]*$/) ? 0 : 2
    next
}
test == 2 { if ($0 == indent "}") test = 0; next }

/^[ \t]*\/\// { next }

# Modules that this one declares; they are named without `self::`.
/^(pub )?mod [a-z_]+;/ {
    child = $0; sub(/.*mod /, "", child); sub(/;.*/, "", child)
    children = children (children == "" ? "" : "|") child
    next
}

statement == "" && /^[ \t]*(pub(\([a-z]+\))? )?use / { line = FNR; statement = " " }
statement != "" {
    statement = statement $0
    if ($0 ~ /;[ \t]*$/) {
        sub(/^[ \t]*(pub(\([a-z]+\))? )?use /, "", statement)
        sub(/;[ \t]*$/, "", statement)
        expand("", statement)
        statement = ""
    }
    next
}

# Paths in the text itself.
{
    line = FNR; rest = $0
    while (match(rest, /(crate|super|self)(::[A-Za-z_]+)+/)) {
        before = RSTART > 1 ? substr(rest, RSTART - 1, 1) : ""
        found = substr(rest, RSTART, RLENGTH)
        rest = substr(rest, RSTART + RLENGTH)
        if (before !~ /[A-Za-z_0-9:]/) check(found)
    }
    rest = $0
    while (children != "" && match(rest, "(^|[^A-Za-z_0-9:.])(" children ")::[A-Za-z_]+")) {
        found = substr(rest, RSTART, RLENGTH)
        rest = substr(rest, RSTART + RLENGTH)
        sub(/^[^A-Za-z_]/, "", found)
        check(found)
    }
}

END {
    for (name in floor) if (!(name in seen)) {
        print "tests/floors.sh: there is no src/" name
        breaches++
    }
    if (!imports) { print "tests/floors.sh: found no imports at all"; breaches++ }
    exit breaches > 0
}
' $files
