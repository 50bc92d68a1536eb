//! Jobs that must ask the master at the moment of a command: looking things up, force and stop.
//!
//! [`run`] does one job and knows nothing of threads; the worker threads of the bot and `-x` call it.

use super::api::{Error, Master, PAGE, WORKERS, percent_encoded};
use crate::config::boolean;
use crate::status::{Build, Worker};
use crate::text::{self, clean};
use serde_json::{Value, json};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a forced build may take to start before the answer is "queued".
const START: Duration = Duration::from_secs(4);
const START_POLL: Duration = Duration::from_millis(200);

/// What a command wants to know or done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// The last builds of these builders, and the steps that these builds are in.
    Facts {
        builders: Vec<u64>,
        steps: Vec<u64>,
    },
    /// The last so many changes.
    Changes(usize),
    Force(Order),
    /// Stops what runs or is queued; or takes back these requests only.
    Stop {
        builder: u64,
        name: String,
        reason: String,
        only: Option<Vec<u64>>,
    },
}

/// A build to be forced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    pub builder: u64,
    pub name: String,
    pub scheduler: Option<String>,
    pub codebase: Option<String>,
    /// `branch` and `revision`, then properties: name and value as given.
    pub source: Vec<(String, String)>,
    pub properties: Vec<(String, String)>,
    pub reason: String,
    /// Who asks, in the form of a mail address, which some schedulers insist on.
    pub who: String,
}

/// What came of it.
#[derive(Debug)]
pub enum Done {
    /// To be applied to the status; then the command has what it needs.
    Facts(Facts),
    /// The reply, and a request whose end the asker wants to hear of.
    Lines(Vec<String>, Option<u64>),
}

/// Answers that belong into the status.
#[derive(Debug, Default)]
pub struct Facts {
    /// Those of one builder after another, each with the highest number first.
    pub builds: Vec<Build>,
    /// Builders of which `builds` holds all that the master has.
    pub asked: Vec<u64>,
    /// Build id and step.
    pub steps: Vec<(u64, String)>,
}

/// Does a job.
pub fn run(job: &Job, master: &mut Master) -> Result<Done, Error> {
    let (line, request) = match job {
        Job::Facts { builders, steps } => return facts(builders, steps, master).map(Done::Facts),
        Job::Changes(count) => {
            let lines: Vec<String> = master
                .changes(*count)?
                .iter()
                .map(text::change_line)
                .collect();
            return Ok(Done::Lines(
                if lines.is_empty() {
                    vec!["no changes yet".into()]
                } else {
                    lines
                },
                None,
            ));
        }
        Job::Stop {
            builder,
            name,
            reason,
            only,
        } => (
            stop(*builder, &clean(name), reason, only.as_deref(), master)?,
            None,
        ),
        Job::Force(order) => force(order, master)?,
    };
    Ok(Done::Lines(vec![line], request))
}

fn facts(builders: &[u64], steps: &[u64], master: &mut Master) -> Result<Facts, Error> {
    let mut facts = Facts {
        asked: builders.to_vec(),
        ..Facts::default()
    };
    for &builder in builders {
        facts.builds.extend(master.recent(builder)?);
    }
    for &build in steps {
        let query = "field=name&field=number&field=complete&complete=false&order=number&limit=1";
        let steps: Vec<Value> = master.list(&format!("/builds/{build}/steps?{query}"))?;
        let step = steps.first().and_then(|step| step["name"].as_str());
        facts
            .steps
            .extend(step.map(|step| (build, step.to_owned())));
    }
    Ok(facts)
}

fn stop(
    builder: u64,
    name: &str,
    reason: &str,
    only: Option<&[u64]>,
    master: &mut Master,
) -> Result<String, Error> {
    let reason = json!({ "reason": reason });
    if only.is_none() {
        let builds = master.builds(&format!("builderid={builder}&complete=false&order=number"))?;
        for build in &builds {
            master.call(&format!("/builds/{}", build.id), "stop", &reason)?;
        }
        if !builds.is_empty() {
            let numbers: Vec<String> = builds.iter().map(|b| format!("#{}", b.number)).collect();
            return Ok(format!("stopping {name} {}", numbers.join(", ")));
        }
    }
    let mut queued = master.queued(&format!("&builderid={builder}"))?;
    queued.retain(|r| only.is_none_or(|only| only.contains(&r.id)));
    for request in &queued {
        master.call(&format!("/buildrequests/{}", request.id), "cancel", &reason)?;
    }
    let idle = if only.is_none() { "nothing runs; " } else { "" };
    Ok(match queued.len() {
        0 if only.is_some() => format!("{name}: your request is not queued any more"),
        0 => format!("{name}: nothing runs and nothing is queued"),
        n => format!(
            "{name}: {idle}took back {}",
            text::count(n, "queued request")
        ),
    })
}

/// Forces a build and waits a moment for its number.
fn force(order: &Order, master: &mut Master) -> Result<(String, Option<u64>), Error> {
    let name = clean(&order.name);
    // The master builds a builder that its scheduler does not list; we do not.
    let mut schedulers: Vec<Value> =
        master.list(&format!("/builders/{}/forceschedulers", order.builder))?;
    schedulers.retain(|s| s["enabled"] != false);
    let mut names: Vec<&str> = schedulers
        .iter()
        .filter_map(|s| s["name"].as_str())
        .collect();
    names.sort_unstable();
    let Some(first) = names.first() else {
        return Err(Error::Wrong(format!(
            "{name} cannot be forced: no force scheduler of the master lists it"
        )));
    };
    let wanted = order.scheduler.as_deref().unwrap_or(first);
    let Some(scheduler) = schedulers.iter().find(|s| s["name"] == wanted) else {
        return Err(Error::Wrong(format!(
            "no such scheduler for {name}; it has {}",
            names.join(", ")
        )));
    };
    let form = form(order, &leaves(&scheduler["all_fields"])).map_err(Error::Wrong)?;
    let result = master.call(
        &format!("/forceschedulers/{}", percent_encoded(wanted)),
        "force",
        &form,
    )?;
    let Some(request) = result[1]
        .as_object()
        .and_then(|requests| requests.values().next()?.as_u64())
    else {
        return Err(Error::Wrong("the master has started nothing".into()));
    };
    let by = if names.len() > 1 {
        format!(" (scheduler {})", clean(wanted))
    } else {
        String::new()
    };
    // Whatever goes wrong now, the build is on its way, and its end will be told.
    let but = |e| (format!("asked for {name}{by}, but: {e}"), Some(request));
    Ok(outcome(order, &by, request, master).unwrap_or_else(but))
}

/// What has become of a request a moment later; and the request, if it has an end to wait for.
fn outcome(
    order: &Order,
    by: &str,
    request: u64,
    master: &mut Master,
) -> Result<(String, Option<u64>), Error> {
    let (builder, name) = (order.builder, clean(&order.name));
    let end = Instant::now() + START;
    while Instant::now() < end {
        let (asked, build) = master.request(request)?;
        if let Some(build) = build {
            let url = text::url(&clean(&master.identity()?.1), &build);
            return Ok((
                format!("forced {name} #{}{by} {url}", build.number),
                Some(request),
            ));
        }
        if asked.is_some_and(|r| r.complete) {
            return Ok((format!("{name}: merged with an equal request{by}"), None));
        }
        sleep(START_POLL);
    }
    let workers: Vec<Worker> =
        master.list(&format!("/builders/{builder}{WORKERS}&limit={PAGE}"))?;
    let ahead = master
        .queued(&format!("&builderid={builder}"))?
        .iter()
        .filter(|r| r.id < request)
        .count();
    let why = match ahead {
        _ if !workers.iter().any(|w| w.online) => "no worker is online".to_owned(),
        0 => "the workers are busy".to_owned(),
        n => format!("behind {}", text::count(n, "other")),
    };
    Ok((format!("queued {name}{by}: {why}"), Some(request)))
}

/// A form is a tree; its leaves, each with its full name, are what is sent.
fn leaves(form: &Value) -> Vec<(&str, &Value)> {
    let mut all = Vec::new();
    for field in form.as_array().into_iter().flatten() {
        match field["fullName"].as_str() {
            _ if field["type"] == "nested" => all.extend(leaves(&field["fields"])),
            name => all.extend(name.map(|name| (name, field))),
        }
    }
    all
}

/// What is to be sent for a form: what was asked for, each by its field, and defaults of the fields
/// that must be there. The master drops what has no field without a word, so we refuse it.
fn form(order: &Order, fields: &[(&str, &Value)]) -> Result<Value, String> {
    let mut sent = json!({ "builderid": order.builder, "reason": order.reason });
    for &(name, field) in fields {
        if field["type"] == "username" {
            sent[name] = order.who.as_str().into();
        } else if field["required"] == true && name != "reason" {
            sent[name] = field["default"].clone();
        }
    }
    if order.source.is_empty() && order.codebase.is_some() {
        return Err("--codebase goes with --branch or --revision".into());
    }
    // Who asks and why is not theirs to set.
    let free = fields
        .iter()
        .copied()
        .filter(|(name, field)| field["type"] != "username" && *name != "reason");
    for (key, value) in &order.source {
        let full_name = order
            .codebase
            .as_ref()
            .map_or(key.clone(), |codebase| format!("{codebase}_{key}"));
        let named = |field: &Value| order.codebase.is_none() && field["name"] == *key;
        let mut fits = free
            .clone()
            .filter(|(name, field)| *name == full_name || named(field));
        match (fits.next(), fits.next()) {
            (Some((name, field)), None) => sent[name] = checked(name, field, value)?,
            (Some(_), Some(_)) => {
                return Err(format!(
                    "--{key}: several codebases have one; add --codebase=NAME"
                ));
            }
            (None, _) => {
                return Err(format!(
                    "--{key}: the scheduler does not ask for {full_name}"
                ));
            }
        }
    }
    for (key, value) in &order.properties {
        if let Some((name, field)) = free
            .clone()
            .find(|(name, field)| name == key || field["name"] == *key)
        {
            sent[name] = checked(name, field, value)?;
            continue;
        }
        // A pair of fields for any property: `x_name` and `x_value`, not taken yet.
        let untaken = |name: &str| sent.get(name).is_none() && free.clone().any(|(n, _)| n == name);
        let mut stems = free
            .clone()
            .filter_map(|(name, _)| name.strip_suffix("_name"));
        let Some(stem) = stems.find(|stem| untaken(&format!("{stem}_value"))) else {
            let known: Vec<&str> = free.map(|(name, _)| name).collect();
            return Err(format!(
                "--props: no property {key}; there are {}",
                known.join(" ")
            ));
        };
        sent[format!("{stem}_name")] = key.as_str().into();
        sent[format!("{stem}_value")] = value.as_str().into();
    }
    Ok(sent)
}

/// A value as the field's type wants it. The master says what is wrong with most of them; but to it
/// any word for a boolean is false, and another value for what is fixed is none.
fn checked(name: &str, field: &Value, value: &str) -> Result<Value, String> {
    let fixed = field["default"]
        .as_str()
        .map_or_else(|| field["default"].to_string(), str::to_owned);
    match field["type"].as_str() {
        Some("bool") => boolean(value)
            .map(Value::from)
            .map_err(|e| format!("{name}: {e}")),
        Some("fixed") if value != fixed => Err(format!("{name} is fixed to {fixed}")),
        _ => Ok(value.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form of a scheduler with two codebases and a field of each type.
    fn tree() -> Value {
        let field = |full_name: &str, kind: &str, required, default: Value| {
            let name = full_name.rsplit('_').next();
            json!({ "name": name, "fullName": full_name, "type": kind, "required": required, "default": default })
        };
        let nested = |fields: &[Value]| json!({ "name": null, "fullName": null, "type": "nested", "fields": fields });
        json!([
            field("username", "username", false, "".into()),
            field("reason", "text", true, "because".into()),
            nested(&[field("app_branch", "text", false, "".into())]),
            nested(&[
                field("lib_branch", "text", false, "".into()),
                field("lib_revision", "text", false, "".into())
            ]),
            field("level", "int", true, 3.into()),
            field("clean", "bool", false, false.into()),
            field("mode", "list", false, "quick".into()),
            field("fix", "fixed", false, "f".into()),
            nested(&[nested(&[
                field("extra_name", "text", false, "".into()),
                field("extra_value", "text", false, "".into())
            ])]),
        ])
    }

    fn sent(
        codebase: Option<&str>,
        source: &[(&str, &str)],
        properties: &[(&str, &str)],
    ) -> Result<String, String> {
        let own = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect()
        };
        let order = Order {
            builder: 7,
            codebase: codebase.map(str::to_owned),
            source: own(source),
            properties: own(properties),
            reason: "r".into(),
            who: "joe <joe@irc.invalid>".into(),
            ..Order::default()
        };
        form(&order, &leaves(&tree())).map(|v| v.to_string())
    }

    #[test]
    fn who_asks_and_why_cannot_be_set_by_a_property() {
        let forged = [("username", "boss <boss@corp>"), ("reason", "not me")];
        for one in forged {
            let sent = sent(None, &[], &[one]).unwrap();
            assert!(
                sent.contains(r#""username":"joe <joe@irc.invalid>""#),
                "{sent}"
            );
            assert!(sent.contains(r#""reason":"r""#), "{sent}");
        }
    }

    #[test]
    fn forms_are_filled_in() {
        let least = r#"{"builderid":7,"level":3,"reason":"r","username":"joe <joe@irc.invalid>"}"#;
        assert_eq!(sent(None, &[], &[]).unwrap(), least);
        let all = [
            ("level", "5"),
            ("clean", "yes"),
            ("mode", "full"),
            ("fix", "f"),
            ("free", "x"),
        ];
        let full = r#"{"builderid":7,"clean":true,"extra_name":"free","extra_value":"x","fix":"f","level":"5","lib_branch":"main","lib_revision":"abc","mode":"full","reason":"r","username":"joe <joe@irc.invalid>"}"#;
        assert_eq!(
            sent(
                Some("lib"),
                &[("branch", "main"), ("revision", "abc")],
                &all
            )
            .unwrap(),
            full
        );
        for (codebase, source, properties, error) in [
            (
                None,
                vec![("branch", "x")],
                vec![],
                "--branch: several codebases have one; add --codebase=NAME",
            ),
            (
                Some("app"),
                vec![("revision", "x")],
                vec![],
                "--revision: the scheduler does not ask for app_revision",
            ),
            (
                None,
                vec![],
                vec![("clean", "x")],
                "clean: `x` is neither yes nor no",
            ),
            (None, vec![], vec![("fix", "x")], "fix is fixed to f"),
            (
                None,
                vec![],
                vec![("a", "1"), ("b", "2")],
                "--props: no property b; there are app_branch lib_branch lib_revision level clean mode fix extra_name extra_value",
            ),
        ] {
            assert_eq!(sent(codebase, &source, &properties).unwrap_err(), error);
        }
    }
}
