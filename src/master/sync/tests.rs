//! Tests of what is asked and when: against a small fake master of values.

use super::super::client::{List, RequestFate};
use super::super::model::Identity;
use super::super::model::tests::{build, builder, requested};
use super::super::resources::Worker;
use super::*;
use crate::outcome::Outcome::{Failure, Skipped, Success};

const INTERVAL: Duration = Duration::from_secs(15);

/// A master of values, and the sync that asks it.
struct Rig {
    sync: Sync,
    model: Model,
    now: Instant,
    builders: Vec<Builder>,
    builds: Vec<Build>,
    requests: Vec<BuildRequest>,
    /// Queries that are answered with an error.
    fail: fn(&Query) -> Option<Error>,
    asked: Vec<Query>,
    events: Vec<MasterEvent>,
}

impl Rig {
    fn new() -> Rig {
        let now = Instant::now();
        Rig {
            sync: Sync::new(INTERVAL, now),
            model: Model::default(),
            now,
            builders: vec![builder(1, "b")],
            builds: Vec::new(),
            requests: Vec::new(),
            fail: |_| None,
            asked: Vec::new(),
            events: Vec::new(),
        }
    }

    /// A rig whose first poll is done.
    fn synced() -> Rig {
        let mut rig = Rig::new();
        rig.poll();
        assert!(rig.sync.is_healthy());
        rig.asked.clear();
        rig
    }

    /// The same, with a stream that is trusted.
    fn streaming() -> Rig {
        let mut rig = Rig::synced();
        rig.sync.on_stream_up(true, rig.now);
        rig.poll();
        rig.asked.clear();
        rig
    }

    /// What is asked next; nothing else is awaited meanwhile.
    fn next_query(&mut self) -> Option<Query> {
        let lookup = self.sync.next_lookup(&self.model, self.now);
        lookup.or_else(|| self.sync.next_query(&mut self.model, self.now))
    }

    /// Asks until nothing is due. Returns the ids of new builds that ended or started.
    fn poll(&mut self) -> Vec<u64> {
        while let Some(query) = self.next_query() {
            assert!(self.asked.len() < 10_000, "it never ends");
            let answer = match (self.fail)(&query) {
                Some(error) => Err(error),
                None => Ok(self.answer(&query)),
            };
            self.asked.push(query.clone());
            let events = self
                .sync
                .on_answer(&query, answer, &mut self.model, self.now, 5000);
            self.events.extend(events);
        }
        self.take_news()
    }

    fn take_news(&mut self) -> Vec<u64> {
        let events = std::mem::take(&mut self.events);
        let ids = events.iter().filter_map(|event| match event {
            MasterEvent::Build(event) => Some(event.build.id),
            _ => None,
        });
        ids.collect()
    }

    /// The stream tells of a build.
    fn stream(&mut self, build: Build) -> Vec<u64> {
        let update = Update::Build(build);
        let events = self.sync.on_update(update, &mut self.model, self.now, 5000);
        self.events.extend(events);
        self.poll()
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    fn answer(&self, query: &Query) -> Answer {
        let mut builds = self.builds.clone();
        builds.sort_by_key(|build| build.id);
        match query {
            Query::Identity => Answer::Identity(Identity::default()),
            Query::Builders(page) => Answer::Builders(cut(self.builders.clone(), *page)),
            Query::Workers(page, _) => Answer::Workers(cut(Vec::<Worker>::new(), *page)),
            Query::NewestChanges => Answer::Changes(Vec::new()),
            Query::RunningBuilds(page) => {
                builds.retain(|build| !build.complete);
                Answer::Builds(cut(builds, *page))
            }
            Query::Branch(id) => {
                builds.retain(|build| build.id == *id);
                Answer::Builds(builds.into())
            }
            Query::RecentBuilds(page) | Query::RecentBranches(page) => {
                builds.reverse();
                Answer::Builds(cut(builds, *page))
            }
            Query::BuildsFrom(id, page) => {
                builds.retain(|build| build.id >= *id);
                Answer::Builds(cut(builds, *page))
            }
            Query::BuildsById(ids, _) => {
                builds.retain(|build| ids.contains(&build.id));
                Answer::Builds(builds.into())
            }
            Query::QueuedRequests(page) => {
                let mut queued = self.requests.clone();
                queued.retain(|request| !request.complete);
                Answer::Requests(cut(queued, *page))
            }
            Query::Request(id) => {
                let of_request = |build: &&Build| build.request_id == Some(*id);
                Answer::Request(RequestFate {
                    request: self.requests.iter().find(|r| r.id == *id).cloned(),
                    build: builds.iter().rev().find(of_request).cloned(),
                    merged_into: None,
                })
            }
            Query::Builder(id) => {
                let found = self.builders.iter().filter(|builder| builder.id == *id);
                Answer::Builders(found.cloned().collect::<Vec<_>>().into())
            }
            Query::PreviousBuilds {
                builder, number, ..
            } => {
                builds.retain(|b| {
                    let is_verdict = b.outcome().is_some_and(Outcome::is_verdict);
                    b.builder_id == *builder && b.number < *number && is_verdict
                });
                builds.reverse();
                builds.truncate(10);
                Answer::Builds(builds.into())
            }
        }
    }
}

fn cut<T>(all: Vec<T>, page: Page) -> List<T> {
    let part: Vec<T> = all.into_iter().skip(page.offset).take(page.limit).collect();
    part.into()
}

fn refused(status: u16) -> Error {
    Error::new(ErrorKind::Refused(status), "no")
}

fn unreachable() -> Error {
    Error::new(ErrorKind::Unreachable, "connection refused")
}

#[test]
fn a_poll_is_a_few_requests_however_many_builders_there_are() {
    let mut rig = Rig::new();
    rig.builders = (1..=950).map(|id| builder(id, &format!("b{id}"))).collect();
    rig.poll();
    let first = rig.asked.len();
    assert!(first <= 9, "{:?}", rig.asked);
    rig.asked.clear();
    rig.wait(INTERVAL);
    rig.poll();
    assert!(rig.asked.len() <= 4, "{:?}", rig.asked);
    assert_eq!(rig.model.builders().count(), 950);
}

#[test]
fn old_builds_are_no_news_and_new_ones_are_once() {
    let mut rig = Rig::new();
    rig.builds = vec![build(1, 1, Some(Success)), build(2, 2, None)];
    assert_eq!(rig.poll(), [] as [u64; 0]);
    rig.builds[1] = build(2, 2, Some(Failure));
    rig.builds.push(build(3, 3, Some(Success)));
    rig.wait(INTERVAL);
    assert_eq!(rig.poll(), [2, 3]);
    rig.wait(INTERVAL);
    assert_eq!(rig.poll(), [] as [u64; 0]);
}

#[test]
fn between_two_polls_nothing_is_asked() {
    let mut rig = Rig::synced();
    assert_eq!(rig.sync.deadline(), rig.now + INTERVAL);
    rig.wait(INTERVAL - Duration::from_millis(1));
    rig.poll();
    assert!(rig.asked.is_empty(), "{:?}", rig.asked);
}

#[test]
fn a_trusted_stream_makes_the_poll_a_rare_check() {
    let mut rig = Rig::streaming();
    assert_eq!(rig.sync.deadline(), rig.now + INTERVAL * RELAXED);
    assert_eq!(rig.stream(build(1, 1, None)), [1]);
    assert_eq!(rig.stream(build(1, 1, None)), [] as [u64; 0], "doubled");
    assert_eq!(rig.stream(build(1, 1, Some(Success))), [1]);
    rig.builds = vec![build(1, 1, Some(Success))];
    rig.wait(INTERVAL * RELAXED);
    assert_eq!(rig.poll(), [] as [u64; 0], "the poll finds the same");
    assert_eq!(rig.sync.deadline(), rig.now + INTERVAL * RELAXED);
}

#[test]
fn a_stream_that_does_not_tell_is_not_trusted_until_it_does() {
    let mut rig = Rig::streaming();
    rig.builds = vec![build(1, 1, Some(Success))];
    rig.wait(INTERVAL * RELAXED);
    assert_eq!(rig.poll(), [1], "the poll has found it");
    rig.wait(STREAM_GRACE);
    rig.poll();
    assert!(rig.sync.take_restart_stream());
    assert!(rig.sync.deadline() <= rig.now + INTERVAL);
    // A new subscription alone does not restore the trust.
    rig.sync.on_stream_up(true, rig.now);
    rig.poll();
    assert_eq!(rig.sync.deadline(), rig.now + INTERVAL);
    for id in 2..2 + u64::from(BUILDS_FOR_TRUST) {
        rig.wait(INTERVAL);
        rig.poll();
        assert_eq!(rig.sync.deadline(), rig.now + INTERVAL);
        assert_eq!(rig.stream(build(id, id, Some(Success))), [id]);
        rig.builds.push(build(id, id, Some(Success)));
    }
    rig.wait(INTERVAL);
    rig.poll();
    assert_eq!(rig.sync.deadline(), rig.now + INTERVAL * RELAXED);
}

#[test]
fn a_stream_that_tells_of_some_builders_only_is_not_trusted_for_long() {
    let mut rig = Rig::streaming();
    let mut trusted_polls = 0;
    // The stream tells of nine builds out of ten.
    for id in 1..200 {
        let build = build(id, id, Some(Success));
        rig.builds.push(build.clone());
        if id % 10 != 0 {
            rig.stream(build);
        }
        let is_trusted = rig.sync.deadline() > rig.now + INTERVAL;
        trusted_polls += usize::from(is_trusted && id > 100);
        rig.wait(INTERVAL * if is_trusted { RELAXED } else { 1 });
        rig.poll();
        rig.wait(STREAM_GRACE);
        rig.poll();
        if rig.sync.take_restart_stream() {
            rig.sync.on_stream_up(true, rig.now);
            rig.poll();
        }
    }
    assert_eq!(trusted_polls, 0);
}

#[test]
fn a_stream_that_is_only_a_little_late_is_trusted() {
    let mut rig = Rig::streaming();
    rig.builds = vec![build(1, 1, Some(Success))];
    rig.wait(INTERVAL * RELAXED);
    assert_eq!(rig.poll(), [1]);
    rig.wait(Duration::from_secs(1));
    assert_eq!(rig.stream(build(1, 1, Some(Success))), [] as [u64; 0]);
    rig.wait(STREAM_GRACE);
    rig.poll();
    assert!(!rig.sync.take_restart_stream());
}

#[test]
fn a_stream_that_comes_late_is_not_trusted() {
    let mut rig = Rig::synced();
    rig.sync.on_stream_up(false, rig.now);
    rig.poll();
    assert_eq!(rig.sync.deadline(), rig.now + INTERVAL);
    // What it tells may be a minute old.
    for id in 1..10 {
        rig.stream(build(id, id, Some(Success)));
    }
    rig.wait(INTERVAL);
    rig.poll();
    assert_eq!(rig.sync.deadline(), rig.now + INTERVAL);
}

#[test]
fn an_id_that_becomes_visible_late_is_told() {
    let mut rig = Rig::synced();
    rig.builds = vec![build(1, 1, Some(Success)), build(3, 3, Some(Success))];
    rig.wait(INTERVAL);
    assert_eq!(rig.poll(), [1, 3]);
    rig.builds.push(build(2, 2, Some(Failure)));
    rig.wait(INTERVAL);
    assert_eq!(rig.poll(), [2]);
    assert_eq!(rig.model.last_build_id(), Some(3));
}

#[test]
fn a_missing_id_is_given_up_after_some_polls() {
    let mut rig = Rig::synced();
    rig.builds = vec![build(1, 1, Some(Success)), build(9, 9, Some(Success))];
    for _ in 0..GAP_POLLS {
        assert!(rig.model.last_build_id() < Some(9));
        rig.wait(INTERVAL);
        rig.poll();
    }
    assert_eq!(rig.model.last_build_id(), Some(9));
}

/// SQLite gives ids again.
#[test]
fn what_has_the_id_of_a_deleted_build_is_told() {
    let mut rig = Rig::synced();
    rig.builds = vec![build(1, 1, Some(Success)), build(2, 2, Some(Success))];
    rig.wait(INTERVAL);
    assert_eq!(rig.poll(), [1, 2]);
    rig.builds.pop();
    rig.wait(INTERVAL);
    assert_eq!(rig.poll(), [] as [u64; 0]);
    rig.builds.push(build(2, 3, Some(Failure)));
    rig.wait(INTERVAL);
    assert_eq!(rig.poll(), [2]);
}

#[test]
fn another_database_is_noticed() {
    let mut rig = Rig::new();
    rig.builds = vec![build(90, 90, Some(Success))];
    rig.poll();
    rig.builds = vec![build(1, 1, Some(Success)), build(2, 2, None)];
    rig.wait(INTERVAL);
    assert_eq!(rig.poll(), [] as [u64; 0]);
    rig.builds[1] = build(2, 2, Some(Failure));
    rig.wait(INTERVAL);
    assert_eq!(rig.poll(), [2]);
}

#[test]
fn after_an_outage_everything_is_found() {
    let mut rig = Rig::streaming();
    rig.stream(build(1, 1, None));
    rig.sync.on_stream_down(&mut rig.model, rig.now);
    rig.fail = |_| Some(Error::new(ErrorKind::NoConnection, "connection refused"));
    let asked_before = rig.asked.len();
    let mut waits = Vec::new();
    for _ in 0..6 {
        rig.poll();
        let wait = rig.sync.deadline() - rig.now;
        waits.push(wait.as_secs());
        rig.wait(wait);
    }
    assert_eq!(waits, [1, 2, 4, 8, 15, 15]);
    assert_eq!(rig.asked.len(), asked_before + 6, "no other list is tried");
    assert!(rig.model.last_error.is_some());
    rig.fail = |_| None;
    rig.builds = vec![build(1, 1, Some(Success)), build(2, 2, Some(Failure))];
    let mut found = rig.poll();
    found.sort_unstable();
    assert_eq!(found, [1, 2]);
    assert!(rig.model.last_error.is_none());
}

#[test]
fn a_list_that_is_refused_is_done_without() {
    let mut rig = Rig::new();
    rig.fail = |query| match query {
        Query::Workers(..) | Query::NewestChanges | Query::Identity => Some(refused(403)),
        _ => None,
    };
    rig.poll();
    assert!(rig.sync.is_healthy());
    rig.builds = vec![build(1, 1, Some(Success))];
    rig.wait(INTERVAL);
    assert_eq!(rig.poll(), [1]);
}

#[test]
fn an_error_of_the_master_may_pass_before_it_is_a_refusal() {
    let mut rig = Rig::new();
    rig.fail = |query| match query {
        Query::QueuedRequests(_) => Some(refused(500)),
        _ => None,
    };
    for _ in 0..TRIES {
        rig.poll();
        assert!(!rig.sync.is_healthy());
        rig.wait(INTERVAL);
    }
    for _ in 0..2 {
        rig.poll();
        assert!(rig.sync.is_healthy(), "and then for good");
        rig.wait(INTERVAL);
    }
}

#[test]
fn what_we_cannot_be_without_fails_the_poll() {
    let mut rig = Rig::new();
    rig.fail = |query| match query {
        Query::Builders(_) => Some(refused(403)),
        _ => None,
    };
    rig.poll();
    assert!(!rig.sync.is_healthy() && rig.model.last_error.is_some());
    assert!(!rig.model.is_complete, "nothing is known to be empty");
}

#[test]
fn an_oversized_page_is_halved_and_one_item_goes_without_its_text() {
    let mut rig = Rig::synced();
    rig.builds = (1..=20).map(|id| build(id, id, Some(Success))).collect();
    // The seventh build cannot be had with its text.
    rig.fail = |query| {
        let page = match query {
            Query::BuildsFrom(_, page) => *page,
            _ => return None,
        };
        let covers = (page.offset..page.offset + page.limit).contains(&6);
        let is_large = covers && !page.without_text;
        is_large.then(|| Error::new(ErrorKind::TooLarge, "a body above 1024 KiB"))
    };
    rig.wait(INTERVAL);
    let expected: Vec<u64> = (1..=20).collect();
    assert_eq!(rig.poll(), expected);
    assert!(rig.asked.len() < 60, "{}", rig.asked.len());
}

#[test]
fn the_builds_before_are_asked_for_where_a_change_is_to_be_told() {
    let mut rig = Rig::new();
    rig.builds = vec![build(1, 1, Some(Success))];
    for id in 2..1100 {
        rig.builds.push(Build {
            builder_id: 2,
            ..build(id, id, Some(Success))
        });
    }
    rig.builders.push(builder(2, "other"));
    rig.poll();
    assert!(rig.model.builder(1).unwrap().last.is_none(), "too long ago");
    rig.builds.push(build(2000, 2, Some(Failure)));
    rig.wait(INTERVAL);
    while let Some(query) = rig.next_query() {
        let answer = Ok(rig.answer(&query));
        let events = rig
            .sync
            .on_answer(&query, answer, &mut rig.model, rig.now, 5000);
        rig.events.extend(events);
    }
    let Some(MasterEvent::Build(event)) = rig.events.pop() else {
        panic!("no event")
    };
    assert_eq!((event.build.id, event.previous), (2000, Some(Success)));
}

#[test]
fn a_failed_lookup_loses_no_build() {
    let mut rig = Rig::streaming();
    rig.builders.push(builder(2, "other"));
    rig.model.set_builders(rig.builders.clone());
    rig.fail = |query| match query {
        Query::PreviousBuilds { .. } => Some(unreachable()),
        _ => None,
    };
    assert_eq!(rig.stream(of_another(2, 1)), [] as [u64; 0]);
    assert!(rig.sync.is_healthy(), "one look-up is no round");
    assert!(rig.sync.lookup_deadline(rig.now) > Some(rig.now));
    rig.fail = |_| None;
    rig.wait(Duration::from_secs(1));
    assert_eq!(rig.poll(), [1]);
    rig.builds.push(of_another(2, 1));
    rig.wait(INTERVAL * RELAXED);
    rig.poll();
    rig.wait(STREAM_GRACE);
    rig.poll();
    assert!(!rig.sync.take_restart_stream(), "the stream has told it");
}

#[test]
fn what_cannot_be_looked_up_is_told_without() {
    let mut rig = Rig::streaming();
    rig.builders.push(builder(2, "other"));
    rig.model.set_builders(rig.builders.clone());
    rig.fail = |query| match query {
        Query::PreviousBuilds { .. } => Some(unreachable()),
        _ => None,
    };
    let mut told = rig.stream(of_another(2, 1));
    for _ in 1..3 {
        assert!(told.is_empty());
        rig.wait(Duration::from_secs(5));
        told = rig.poll();
    }
    assert_eq!(told, [1]);
}

/// 502 for a minute, as where the master restarts behind a proxy.
#[test]
fn while_a_proxy_answers_for_the_master_builds_wait() {
    let mut rig = Rig::streaming();
    rig.fail = |_| {
        Some(Error::new(
            ErrorKind::Busy,
            "a proxy answers for the master",
        ))
    };
    let of_new_builder = Build {
        builder_id: 7,
        ..build(2, 1, Some(Failure))
    };
    rig.builds = vec![build(1, 1, Some(Failure)), of_new_builder.clone()];
    assert_eq!(rig.stream(of_new_builder), [] as [u64; 0]);
    assert_eq!(rig.stream(build(1, 1, Some(Failure))), [] as [u64; 0]);
    for _ in 0..30 {
        rig.wait(Duration::from_secs(2));
        assert_eq!(rig.poll(), [] as [u64; 0]);
    }
    rig.fail = |_| None;
    rig.builders.push(builder(7, "new"));
    rig.wait(INTERVAL);
    let mut told = rig.poll();
    told.sort_unstable();
    assert_eq!(told, [1, 2]);
}

#[test]
fn what_is_nice_to_have_and_does_not_come_holds_up_nothing() {
    let mut rig = Rig::new();
    rig.fail = |query| {
        let is_nice = !query.is_essential() && !query.is_lookup();
        is_nice.then(|| Error::new(ErrorKind::TimedOut, "no answer in time"))
    };
    rig.poll();
    assert!(rig.model.is_complete, "the first poll is through");
    let nice = |rig: &Rig| {
        rig.asked
            .iter()
            .filter(|query| !query.is_essential())
            .count()
    };
    rig.builds = vec![build(1, 1, Some(Success))];
    rig.wait(INTERVAL);
    assert_eq!(rig.poll(), [1]);
    let first = nice(&rig);
    assert!(first > 0);
    rig.wait(INTERVAL);
    rig.poll();
    assert_eq!(nice(&rig), first, "not at once again");
    rig.fail = |_| None;
    rig.wait(DO_WITHOUT);
    rig.poll();
    assert!(nice(&rig) > first, "but later");
}

#[test]
fn a_builder_that_is_not_listed_is_asked_for_once() {
    let mut rig = Rig::streaming();
    let of_new = |id| Build {
        builder_id: 7,
        ..build(id, id, None)
    };
    assert_eq!(rig.stream(of_new(1)), [] as [u64; 0], "nobody knows it");
    rig.stream(of_new(2));
    let lookups = rig.asked.iter().filter(|q| matches!(q, Query::Builder(7)));
    assert_eq!(lookups.count(), 1);
    rig.builders.push(builder(8, "new"));
    let of_eight = Build {
        builder_id: 8,
        ..build(3, 1, None)
    };
    assert_eq!(rig.stream(of_eight), [3]);
}

#[test]
fn the_fate_of_a_watched_request_is_told() {
    let mut rig = Rig::streaming();
    rig.sync.set_tracked([7, 8, 9].into());
    rig.builds = vec![requested(1, 7, Some(Success))];
    rig.requests = vec![BuildRequest {
        id: 8,
        builder_id: 1,
        complete: true,
        results: Some(Skipped as i64),
        ..BuildRequest::default()
    }];
    let update = Update::Request(rig.requests[0].clone());
    rig.sync.on_update(update, &mut rig.model, rig.now, 5000);
    while let Some(query) = rig.next_query() {
        let answer = Ok(rig.answer(&query));
        let events = rig
            .sync
            .on_answer(&query, answer, &mut rig.model, rig.now, 5000);
        rig.events.extend(events);
    }
    let mut ends = Vec::new();
    let mut builds = Vec::new();
    for event in &rig.events {
        match event {
            MasterEvent::RequestEnded { request, end, .. } => ends.push((*request, *end)),
            MasterEvent::Build(event) => builds.push((event.build.id, event.ends_request)),
            _ => {}
        }
    }
    ends.sort_unstable_by_key(|(request, _)| *request);
    assert_eq!(
        ends,
        [(8, RequestEnd::Merged(None)), (9, RequestEnd::Forgotten)]
    );
    assert_eq!(builds, [(1, true)]);
}

#[test]
fn the_stream_is_ignored_before_the_first_poll() {
    let mut rig = Rig::new();
    let update = Update::Build(build(1, 1, None));
    let events = rig.sync.on_update(update, &mut rig.model, rig.now, 5000);
    assert!(events.is_empty());
    rig.builds = vec![build(1, 1, Some(Success))];
    assert_eq!(rig.poll(), [] as [u64; 0]);
}

#[test]
fn many_new_builds_come_in_pages_and_none_is_lost() {
    let mut rig = Rig::synced();
    rig.builds = (1..=350).map(|id| build(id, id, Some(Success))).collect();
    rig.wait(INTERVAL);
    let expected: Vec<u64> = (1..=350).collect();
    assert_eq!(rig.poll(), expected);
}

/// A build whose predecessors are asked for: of a builder of which nothing is known.
fn of_another(builder: u64, id: u64) -> Build {
    Build {
        builder_id: builder,
        branch: Some("main".into()),
        ..build(id, 20, Some(Failure))
    }
}

/// The first build of builder 1, of which all is known.
fn on_main(id: u64) -> Build {
    Build {
        branch: Some("main".into()),
        ..build(id, 1, Some(Success))
    }
}

#[test]
fn a_slow_look_up_holds_back_no_builder_but_its_own() {
    let mut rig = Rig::streaming();
    rig.builders.push(builder(2, "other"));
    rig.model.set_builders(rig.builders.clone());
    let mut tell = |build| {
        let update = Update::Build(build);
        let events = rig.sync.on_update(update, &mut rig.model, rig.now, 5000);
        events.len()
    };
    assert_eq!(tell(of_another(2, 1)), 0, "it waits");
    let later = Build {
        number: 21,
        ..of_another(2, 2)
    };
    assert_eq!(tell(later), 0, "behind it");
    assert_eq!(tell(on_main(3)), 1, "of another builder");
    let query = rig.sync.next_lookup(&rig.model, rig.now).unwrap();
    assert!(matches!(
        query,
        Query::PreviousBuilds {
            builder: 2,
            number: 20,
            ..
        }
    ));
    let answer = Ok(Answer::Builds(Vec::new().into()));
    let events = rig
        .sync
        .on_answer(&query, answer, &mut rig.model, rig.now, 5000);
    assert_eq!(events.len(), 2);
}

#[test]
fn the_stream_is_heard_while_a_list_is_awaited() {
    let mut rig = Rig::streaming();
    rig.wait(INTERVAL * RELAXED);
    let list = rig.sync.next_query(&mut rig.model, rig.now).unwrap();
    let update = Update::Build(on_main(1));
    let events = rig.sync.on_update(update, &mut rig.model, rig.now, 5000);
    assert_eq!(events.len(), 1);
    let answer = Ok(rig.answer(&list));
    let events = rig
        .sync
        .on_answer(&list, answer, &mut rig.model, rig.now, 5000);
    assert!(events.is_empty(), "the list is older, and undoes nothing");
    assert_eq!(rig.model.last_build_id(), Some(1));
}

#[test]
fn the_answer_of_a_round_that_has_failed_is_nothing() {
    let mut rig = Rig::streaming();
    rig.wait(INTERVAL * RELAXED);
    let list = rig.sync.next_query(&mut rig.model, rig.now).unwrap();
    let failed = Err(unreachable());
    rig.sync
        .on_answer(&list, failed, &mut rig.model, rig.now, 5000);
    assert!(!rig.sync.is_healthy());
    let late = Ok(Answer::Builds(vec![build(9, 9, Some(Success))].into()));
    let events = rig
        .sync
        .on_answer(&list, late, &mut rig.model, rig.now, 5000);
    assert!(events.is_empty());
}

/// The poller holds back what the stream tells until the whole list has come.
#[test]
fn a_list_of_several_pages_is_one_answer() {
    let mut rig = Rig::synced();
    rig.builders = (1..=150).map(|id| builder(id, &format!("b{id}"))).collect();
    rig.wait(LIST_REFRESH);
    let mut gathering = 0;
    while let Some(query) = rig.next_query() {
        let answer = Ok(rig.answer(&query));
        rig.sync
            .on_answer(&query, answer, &mut rig.model, rig.now, 5000);
        gathering += usize::from(rig.sync.is_gathering());
    }
    assert_eq!(gathering, 1, "between the two pages of builders");
}

#[test]
fn many_that_wait_cost_no_more_each() {
    let mut rig = Rig::synced();
    let count = 3000;
    rig.builders = (1..=count)
        .map(|id| builder(id, &format!("b{id}")))
        .collect();
    rig.model.set_builders(rig.builders.clone());
    let start = Instant::now();
    for id in 1..=count {
        let update = Update::Build(of_another(id, id));
        rig.sync.on_update(update, &mut rig.model, rig.now, 5000);
    }
    let mut told = 0;
    while let Some(query) = rig.sync.next_lookup(&rig.model, rig.now) {
        let none = Ok(Answer::Builds(Vec::new().into()));
        let events = rig
            .sync
            .on_answer(&query, none, &mut rig.model, rig.now, 5000);
        told += events.len() as u64;
    }
    assert_eq!(told, count);
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn what_was_before_a_build_is_asked_for_while_it_runs() {
    let mut rig = Rig::streaming();
    let running = Build {
        branch: Some("main".into()),
        ..build(5, 5, None)
    };
    assert_eq!(rig.stream(running.clone()), [5]);
    let asked = |rig: &Rig| {
        let of_before = |query: &&Query| matches!(query, Query::PreviousBuilds { .. });
        rig.asked.iter().filter(of_before).count()
    };
    assert_eq!(asked(&rig), 1);
    let ended = Build {
        branch: None,
        ..build(5, 5, Some(Failure))
    };
    assert_eq!(rig.stream(ended), [5]);
    assert_eq!(asked(&rig), 1, "and not again at its end");
}

#[test]
fn recent_branches_are_asked_for_behind_the_first_poll() {
    let mut rig = Rig::new();
    rig.builds = vec![build(1, 1, Some(Success))];
    rig.poll();
    let place = |wanted: fn(&Query) -> bool| rig.asked.iter().position(wanted);
    let branches = place(|query| matches!(query, Query::RecentBranches(_)));
    let queue = place(|query| matches!(query, Query::QueuedRequests(_)));
    assert!(branches > queue && rig.model.is_complete);
    rig.asked.clear();
    rig.wait(INTERVAL);
    rig.poll();
    let again = rig
        .asked
        .iter()
        .any(|q| matches!(q, Query::RecentBranches(_)));
    assert!(!again);
}

/// After a restart builds are found that ended before there was a stream.
#[test]
fn the_stream_is_not_blamed_for_what_was_before_it() {
    let mut rig = Rig::new();
    rig.builders.push(builder(2, "other"));
    rig.model.resume(crate::master::model::BuildCursor {
        last_build_id: Some(3),
        ..Default::default()
    });
    rig.builds = vec![build(3, 3, Some(Success)), of_another(2, 4)];
    rig.sync.on_stream_up(true, rig.now);
    let mut lookup = None;
    while let Some(query) = rig.sync.next_query(&mut rig.model, rig.now) {
        let answer = Ok(rig.answer(&query));
        rig.sync
            .on_answer(&query, answer, &mut rig.model, rig.now, 5000);
        lookup = lookup.or_else(|| rig.sync.next_lookup(&rig.model, rig.now));
    }
    assert!(rig.sync.is_trusted());
    let lookup = lookup.expect("the build waits for what was before it");
    let none = Ok(Answer::Builds(Vec::new().into()));
    let events = rig
        .sync
        .on_answer(&lookup, none, &mut rig.model, rig.now, 5000);
    assert_eq!(events.len(), 1);
    rig.wait(STREAM_GRACE);
    rig.poll();
    assert!(!rig.sync.take_restart_stream());
}

/// The stream may tell what a look-up was to tell.
#[test]
fn a_branch_that_the_stream_tells_ends_the_wait_for_it() {
    let mut rig = Rig::streaming();
    let of_request = Build {
        request_id: Some(7),
        ..build(1, 1, Some(Success))
    };
    rig.fail = |query| match query {
        Query::Branch(_) => Some(unreachable()),
        _ => None,
    };
    assert_eq!(rig.stream(of_request), [] as [u64; 0]);
    let tell = |rig: &mut Rig, update| {
        let events = rig.sync.on_update(update, &mut rig.model, rig.now, 5000);
        rig.events.extend(events);
    };
    tell(
        &mut rig,
        Update::Request(BuildRequest {
            id: 7,
            buildset_id: 3,
            ..BuildRequest::default()
        }),
    );
    let sources = vec![crate::master::resources::SourceStamp::default()];
    let buildset = crate::master::resources::Buildset {
        id: 3,
        sources,
        ..Default::default()
    };
    tell(&mut rig, Update::Buildset(buildset));
    assert_eq!(rig.take_news(), [1]);
    rig.wait(Duration::from_secs(100));
    assert_eq!(rig.sync.lookup_deadline(rig.now), None);
}
