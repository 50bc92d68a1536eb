"""Fills the database of a running master: fill_database.py DATABASE BUILDERS BUILDS.

Adds builders b00001 … until there are so many, all configured on worker w1, and spreads finished builds over
them. Prints, as JSON, the builders' ids.
"""

import hashlib
import json
import sqlite3
import sys
import time

database, builders, builds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
db = sqlite3.connect(database, timeout=60)
one = lambda query, *values: db.execute(query, values).fetchone()[0]
master = one("select id from masters")
worker = one("select id from workers where name = 'w1'")
now = int(time.time())

known = dict(db.execute("select name, id from builders"))
for n in range(1, builders - 3):  # four more have names
    name = f"b{n:05}"
    if name not in known:
        hash = hashlib.sha1(name.encode()).hexdigest()
        known[name] = db.execute("insert into builders (name, name_hash) values (?, ?)", (name, hash)).lastrowid
        row = db.execute("insert into builder_masters (builderid, masterid) values (?, ?)", (known[name], master))
        db.execute("insert into configured_workers (buildermasterid, workerid) values (?, ?)", (row.lastrowid, worker))
ids = [known[f"b{n:05}"] for n in range(1, builders - 3)]

stamp = db.execute("insert into sourcestamps (ss_hash, created_at) values ('fill', ?)", (now,)).lastrowid
ended = (now, 1, now, 0)
query = "insert into buildsets (reason, submitted_at, complete, complete_at, results) values ('fill', ?, ?, ?, ?)"
buildset = db.execute(query, ended).lastrowid
db.execute("insert into buildset_sourcestamps (buildsetid, sourcestampid) values (?, ?)", (buildset, stamp))
query = "insert into buildrequests (buildsetid, builderid, submitted_at, complete, complete_at, results) values (?, ?, ?, ?, ?, ?)"
request = db.execute(query, (buildset, ids[0], *ended)).lastrowid


def rows():
    for i in range(builds):
        results, text = (2, "failed 'make test' (failure)") if i % 10 == 9 else (0, "build successful")
        start = now - builds + i
        yield i // len(ids) + 1, ids[i % len(ids)], request, worker, master, start, min(start + 60, now), 0, text, results


columns = "number, builderid, buildrequestid, workerid, masterid, started_at, complete_at, locks_duration_s, state_string, results"
db.executemany(f"insert into builds ({columns}) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows())
# A master has a branch for each; only those that anybody looks at are worth a row.
query = """insert into build_properties (buildid, name, value, source)
    select id, 'branch', '"main"', 'Build' from builds order by id desc limit 5000"""
db.execute(query)
db.commit()
print(json.dumps({"builders": ids}))
