#!/bin/sh
# Prints the size of each room of src/: lines of program (no tests, no comments, no blank lines) and
# the file's name, and last the sum. The map of doc/source.md and README's path for auditors have these;
# `sh tests/rooms.sh --write` puts them there.
set -eu
cd "$(dirname "$0")/.."

sizes() {
    find src -name '*.rs' ! -name tests.rs | LC_ALL=C sort | while read -r file; do
        awk '
        # What is only for tests: one line that ends in a semicolon, or a block up to its brace.
        /^[ \t]*#\[cfg\(test\)\]/ { test = 1; indent = $0; sub(/#.*/, "", indent); next }
        test == 1 {
            if ($0 ~ /^[ \t]*#\[/) next
            test = ($0 ~ /;[ \t]*$/ || $0 ~ /\{.*\}[ \t]*$/) ? 0 : 2
            next
        }
        test == 2 { if ($0 == indent "}") test = 0; next }
        /^[ \t]*$/ || /^[ \t]*\/\// { next }
        { lines++ }
        END { print lines + 0, FILENAME }
        ' "$file"
    done
}

case "${1-}" in
    "") sizes | awk '{ print; sum += $1 } END { print sum, "in all" }' ;;
    --write)
        # A row of the map: | floor | `src/FILE` | lines | what lives there |
        # A step of the path: 1. NAME, N lines: `src/FILE` `src/FILE` ...
        mkdir -p target
        sizes > target/rooms.sizes
        for page in README.md doc/source.md; do
            awk '
            FNR == NR { lines[$2] = $1; next }
            /^[|] [0-9] [|] `src\// {
                split($0, cell, / [|] /)
                file = cell[2]; gsub(/`/, "", file)
                if (file in lines) sub(/ [|] [0-9]+ [|] /, " | " lines[file] " | ")
            }
            /^[0-9][.] .*, [0-9]+ lines: `src\// {
                sum = 0
                for (i = 1; i <= NF; i++) { file = $i; gsub(/`/, "", file); sum += lines[file] }
                sub(/, [0-9]+ lines: /, ", " sum " lines: ")
            }
            { print }
            ' target/rooms.sizes "$page" > target/rooms.page
            cat target/rooms.page > "$page"
        done
        ;;
    *) echo "usage: sh tests/rooms.sh [--write]" >&2; exit 64 ;;
esac
