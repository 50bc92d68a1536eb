//! Tests of buildsets under way.

use super::*;
use crate::master::resources::Build;

const GRACE: i64 = 10;
const PATIENCE: i64 = 3600;

fn event(request: u64, outcome: Option<Outcome>) -> BuildEvent {
    BuildEvent {
        builder: format!("b{request}"),
        build: Build {
            id: request,
            request_id: Some(request),
            complete: outcome.is_some(),
            results: outcome.map(|outcome| outcome as u64),
            ..Build::default()
        },
        is_new: true,
        ends_request: outcome.is_some_and(|outcome| outcome != Outcome::Retry),
        ..BuildEvent::default()
    }
}

/// A buildset of these requests, of which some have ended with these results.
fn known(requests: &[(u64, Option<Outcome>)]) -> BuildsetAnswer {
    let request = |(id, outcome): &(u64, Option<Outcome>)| BuildRequest {
        id: *id,
        buildset_id: 7,
        complete: outcome.is_some(),
        results: outcome.map(|outcome| outcome as i64),
        ..BuildRequest::default()
    };
    BuildsetAnswer::Known(Box::new(BuildsetInfo {
        id: 7,
        requests: requests.iter().map(request).collect(),
        ..BuildsetInfo::default()
    }))
}

/// One place, #c, that cares for all.
fn everyone(set: &OpenBuildset) -> Vec<Audience> {
    let requests = set.info.iter().flat_map(|info| &info.requests);
    vec![Audience {
        place: "#c".into(),
        requests: requests.map(|request| request.id).collect(),
    }]
}

impl Buildsets {
    fn put(&mut self, event: &BuildEvent, unix: i64) {
        self.add(event, None, ["#c"].into_iter(), unix);
    }

    fn answer(&mut self, request: u64, answer: BuildsetAnswer, unix: i64) -> Vec<Step> {
        self.on_answer(request, answer, &everyone, unix)
    }
}

/// What is due, in short: `ask 1`, `start`, `end 2/0` (builds, still open), `alone 1`.
fn due(sets: &mut Buildsets, unix: i64) -> Vec<String> {
    let steps = sets.take_due(unix, GRACE, PATIENCE);
    steps.iter().map(short).collect()
}

fn short(step: &Step) -> String {
    match step {
        Step::Ask(request, _) => format!("ask {request}"),
        Step::TellStart(..) => "start".to_owned(),
        Step::TellEnd(told) => format!("end {}/{}", told.builds.len(), told.open),
        Step::TellAlone(builds, start, places) => {
            assert!(places.keys().eq(["#c"]));
            format!("alone {}", builds.len() + usize::from(start.is_some()))
        }
    }
}

const NONE: [&str; 0] = [];
const GOOD: Option<Outcome> = Some(Outcome::Success);

#[test]
fn what_was_started_together_is_told_when_all_has_ended() {
    let mut sets = Buildsets::default();
    sets.put(&event(1, None), 0);
    assert_eq!(due(&mut sets, 0), ["ask 1"]);
    assert_eq!(due(&mut sets, 0), NONE, "it is asked once");
    sets.answer(1, known(&[(1, None), (2, None)]), 0);
    assert_eq!(due(&mut sets, 0), ["start"]);
    sets.put(&event(2, None), 1);
    sets.put(&event(1, GOOD), 2);
    assert_eq!(due(&mut sets, 2), NONE);
    sets.put(&event(2, Some(Outcome::Failure)), 3);
    assert_eq!(due(&mut sets, 3), ["end 2/0"]);
    assert!(sets.export().is_empty());
    assert_eq!(
        sets.next_due(3, GRACE, PATIENCE),
        None,
        "and nothing is awake"
    );
}

#[test]
fn of_requests_that_came_before_the_answer_one_is_asked_for() {
    let mut sets = Buildsets::default();
    sets.put(&event(1, GOOD), 0);
    sets.put(&event(2, GOOD), 0);
    assert_eq!(due(&mut sets, 0), ["ask 1", "ask 2"]);
    sets.answer(1, known(&[(1, GOOD), (2, GOOD)]), 0);
    assert_eq!(due(&mut sets, 0), ["end 2/0"]);
    assert!(sets.answer(2, known(&[(1, GOOD), (2, GOOD)]), 0).is_empty());
    assert_eq!(due(&mut sets, 1), NONE);
}

#[test]
fn merged_and_cancelled_requests_are_not_waited_for() {
    let mut sets = Buildsets::default();
    sets.put(&event(1, GOOD), 0);
    due(&mut sets, 0);
    sets.answer(
        1,
        known(&[(1, GOOD), (2, Some(Outcome::Skipped)), (3, None)]),
        0,
    );
    sets.on_dropped(3);
    assert_eq!(due(&mut sets, 0), NONE, "a build of #2 could still come");
    assert_eq!(sets.next_due(0, GRACE, PATIENCE), Some(MERGED_GRACE));
    assert_eq!(due(&mut sets, MERGED_GRACE), ["end 1/0"]);
}

#[test]
fn a_build_that_is_on_its_way_to_us_is_awaited() {
    let mut sets = Buildsets::default();
    sets.put(&event(1, GOOD), 0);
    due(&mut sets, 0);
    sets.answer(1, known(&[(1, GOOD), (2, GOOD)]), 0);
    assert_eq!(due(&mut sets, GRACE - 1), NONE);
    sets.put(&event(2, GOOD), GRACE - 1);
    assert_eq!(due(&mut sets, GRACE - 1), ["end 2/0"]);
    // One that never comes is not.
    sets.put(&event(3, GOOD), 100);
    due(&mut sets, 100);
    sets.answer(3, known(&[(3, GOOD), (4, GOOD)]), 100);
    assert_eq!(due(&mut sets, 100 + GRACE), ["end 1/0"]);
}

#[test]
fn one_that_never_ends_is_told_with_what_has_ended() {
    let mut sets = Buildsets::default();
    sets.put(&event(1, GOOD), 0);
    due(&mut sets, 0);
    sets.answer(1, known(&[(1, GOOD), (2, None)]), 0);
    assert_eq!(due(&mut sets, ASK_AGAIN), ["ask 1"]);
    sets.answer(1, known(&[(1, GOOD), (2, None)]), ASK_AGAIN);
    assert_eq!(due(&mut sets, PATIENCE), ["end 1/1", "ask 1"]);
    sets.put(&event(2, GOOD), 5000);
    assert_eq!(due(&mut sets, 5000), ["end 1/0"]);
    assert!(sets.export().is_empty());
}

#[test]
fn what_belongs_to_nothing_is_told_by_itself() {
    let mut sets = Buildsets::default();
    sets.put(&event(1, GOOD), 0);
    due(&mut sets, 0);
    sets.answer(1, known(&[(1, GOOD)]), 0);
    assert_eq!(due(&mut sets, 0), ["alone 1"]);
    sets.put(&event(2, GOOD), 0);
    due(&mut sets, 0);
    let gone = sets.answer(2, BuildsetAnswer::Gone, 0);
    assert_eq!(gone.iter().map(short).collect::<Vec<_>>(), ["alone 1"]);
    // The master does not say: it is asked again, and at last told as it is.
    sets.put(&event(3, GOOD), 0);
    due(&mut sets, 0);
    sets.answer(3, BuildsetAnswer::Failed, 0);
    assert_eq!(due(&mut sets, RETRY), ["ask 3"]);
    sets.answer(3, BuildsetAnswer::Failed, RETRY);
    assert_eq!(due(&mut sets, PATIENCE)[0], "alone 1");
}

#[test]
fn a_retried_build_is_not_the_end() {
    let mut sets = Buildsets::default();
    sets.put(&event(1, Some(Outcome::Retry)), 0);
    due(&mut sets, 0);
    sets.answer(1, known(&[(1, None), (2, GOOD)]), 0);
    sets.put(&event(2, GOOD), 0);
    assert_eq!(due(&mut sets, 0), NONE);
    sets.put(&event(1, GOOD), 1);
    assert_eq!(due(&mut sets, 1), ["end 2/0"]);
}

#[test]
fn it_goes_on_from_the_state_file() {
    let mut sets = Buildsets::default();
    sets.put(&event(1, GOOD), 0);
    due(&mut sets, 0);
    sets.answer(1, known(&[(1, GOOD), (2, None)]), 0);
    let mut again = Buildsets::resume(sets.export(), 50);
    assert_eq!(due(&mut again, 50), ["ask 1"]);
    again.answer(1, known(&[(1, GOOD), (2, GOOD)]), 50);
    assert_eq!(due(&mut again, 50), NONE, "its build is about to be found");
    again.put(&event(2, GOOD), 51);
    assert_eq!(due(&mut again, 51), ["end 2/0"]);
}

#[test]
fn what_had_all_ended_is_told_after_a_crash() {
    let mut sets = Buildsets::default();
    sets.put(&event(1, GOOD), 0);
    due(&mut sets, 0);
    sets.answer(1, known(&[(1, GOOD), (2, None)]), 0);
    sets.put(&event(2, GOOD), 1);
    let mut again = Buildsets::resume(sets.export(), 50);
    assert_eq!(due(&mut again, 50), ["ask 1"]);
    again.answer(1, known(&[(1, GOOD), (2, GOOD)]), 51);
    assert_eq!(due(&mut again, 51), ["end 2/0"]);
    // And not once more, if the crash came behind it.
    let mut sets = Buildsets::resume(again.export(), 60);
    assert_eq!(due(&mut sets, 60), NONE);
}

#[test]
fn there_are_never_more_than_we_can_keep() {
    let mut sets = Buildsets::default();
    for request in 1..3000 {
        sets.put(&event(request, GOOD), 0);
        due(&mut sets, 0);
    }
    assert!(sets.export().len() <= OPEN + 1);
}

#[test]
fn what_is_past_keeps_nobody_awake() {
    let mut sets = Buildsets::default();
    sets.put(&event(2, None), 0);
    due(&mut sets, 0);
    sets.answer(2, known(&[(1, Some(Outcome::Skipped)), (2, None)]), 0);
    assert_eq!(due(&mut sets, 0), ["start"]);
    for unix in [3, 10, 29] {
        assert_eq!(due(&mut sets, unix), NONE);
        let next = sets.next_due(unix, GRACE, PATIENCE);
        assert!(next > Some(unix), "at {unix}: {next:?}");
    }
}

#[test]
fn a_place_waits_for_what_it_cares_for() {
    let mut sets = Buildsets::default();
    let two_places = |_: &OpenBuildset| {
        let audience = |place: &str, requests: &[u64]| Audience {
            place: place.into(),
            requests: requests.iter().copied().collect(),
        };
        vec![audience("#all", &[1, 2, 3]), audience("#few", &[1, 2])]
    };
    for request in [1, 2] {
        sets.put(&event(request, GOOD), 0);
    }
    due(&mut sets, 0);
    let answer = known(&[(1, GOOD), (2, GOOD), (3, None)]);
    sets.on_answer(1, answer, &two_places, 0);
    assert_eq!(due(&mut sets, 0), ["end 2/0"], "#few");
    assert_eq!(due(&mut sets, 1), NONE);
    sets.put(&event(3, GOOD), 2);
    assert_eq!(due(&mut sets, 2), ["end 3/0"], "#all");
    assert!(sets.export().is_empty());
}

#[test]
fn after_an_outage_it_is_asked_within_a_minute() {
    let mut sets = Buildsets::default();
    sets.put(&event(1, GOOD), 0);
    let mut unix = 0;
    for _ in 0..20 {
        assert_eq!(due(&mut sets, unix), ["ask 1"]);
        sets.on_not_asked(1, unix);
        let next = sets.next_due(unix, GRACE, PATIENCE);
        assert!(next <= Some(unix + LONGEST_RETRY), "{next:?} at {unix}");
        unix = next.unwrap_or(unix);
    }
}
