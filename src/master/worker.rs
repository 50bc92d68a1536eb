//! Jobs that must ask the master at the moment of a command.
//!
//! [`run`] does one job and knows nothing of threads; the worker thread of the bot and `-x` call it.

use super::api::{Change, Error, Field, Master};
use crate::status::Build;
use crate::text::{self, clean};
use serde_json::{Value, json};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a forced build may take to start before the answer is "queued".
const START: Duration = Duration::from_secs(4);
const START_POLL: Duration = Duration::from_millis(200);

/// Fields of every form, which are no properties.
const OWN: [&str; 7] = ["username", "reason", "priority", "branch", "project", "repository", "revision"];

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
    pub builds: Vec<Build>,
    /// Builders of which `builds` holds all that the master has.
    pub asked: Vec<u64>,
    /// Build id and step.
    pub steps: Vec<(u64, String)>,
}

/// Does a job. The master's answers take as long as its timeout at most.
pub fn run(job: &Job, master: &mut Master) -> Result<Done, Error> {
    Ok(match job {
        Job::Facts { builders, steps } => Done::Facts(facts(builders, steps, master)?),
        Job::Changes(count) => Done::Lines(changes(*count, master)?, None),
        Job::Stop { builder, name, reason, only } => {
            Done::Lines(vec![stop(*builder, name, reason, only.as_deref(), master)?], None)
        }
        Job::Force(order) => {
            let (line, request) = force(order, master)?;
            Done::Lines(vec![line], request)
        }
    })
}

fn facts(builders: &[u64], steps: &[u64], master: &mut Master) -> Result<Facts, Error> {
    let mut facts = Facts::default();
    for &builder in builders {
        facts.builds.extend(master.recent(builder)?);
        facts.asked.push(builder);
    }
    for &build in steps {
        facts.steps.extend(master.step(build)?.map(|step| (build, step)));
    }
    Ok(facts)
}

fn changes(count: usize, master: &mut Master) -> Result<Vec<String>, Error> {
    let changes = master.changes(count)?;
    Ok(if changes.is_empty() { vec!["no changes yet".into()] } else { changes.iter().map(change_line).collect() })
}

/// A change: revision, author, first line of the comment.
fn change_line(change: &Change) -> String {
    let revision = text::short_revision(change.revision.as_deref().unwrap_or("(no revision)"));
    let comment = change.comments.as_deref().unwrap_or("").lines().next().unwrap_or("");
    let branch = change.branch.as_deref().map_or(String::new(), |b| format!(" on {}", clean(b)));
    format!("{revision}{branch} by {}: {}", text::author(&change.author), clean(comment))
}

fn stop(builder: u64, name: &str, reason: &str, only: Option<&[u64]>, master: &mut Master) -> Result<String, Error> {
    let name = clean(name);
    let builds = match only {
        Some(_) => Vec::new(),
        None => master.builds(&format!("builderid={builder}&complete=false&order=number"))?,
    };
    for build in &builds {
        master.end(&format!("/builds/{}", build.id), "stop", reason)?;
    }
    if !builds.is_empty() {
        let numbers: Vec<String> = builds.iter().map(|b| format!("#{}", b.number)).collect();
        return Ok(format!("stopping {name} {}", numbers.join(", ")));
    }
    let mut queued = master.queued(Some(builder))?;
    queued.retain(|r| only.is_none_or(|only| only.contains(&r.id)));
    for request in &queued {
        master.end(&format!("/buildrequests/{}", request.id), "cancel", reason)?;
    }
    Ok(match queued.len() {
        0 => format!("{name}: nothing runs and nothing is queued"),
        n if only.is_some() => format!("{name}: took back {}", text::count(n, "queued request")),
        n => format!("{name}: nothing runs; took back {}", text::count(n, "queued request")),
    })
}

/// Forces a build and waits a moment for its number.
fn force(order: &Order, master: &mut Master) -> Result<(String, Option<u64>), Error> {
    let name = clean(&order.name);
    let schedulers = master.force_schedulers(order.builder)?;
    let Some(scheduler) = schedulers.iter().find(|s| order.scheduler.as_ref().is_none_or(|wanted| s.name == *wanted))
    else {
        let names: Vec<String> = schedulers.iter().map(|s| clean(&s.name)).collect();
        return Err(Error::Wrong(match names.is_empty() {
            true => format!("{name} cannot be forced: no force scheduler of the master lists it"),
            false => format!("no such scheduler for {name}; there are {}", names.join(", ")),
        }));
    };
    let leaves: Vec<&Field> = scheduler.fields.iter().flat_map(Field::leaves).collect();
    let request = master.force(&scheduler.name, form(order, &leaves)?)?;
    let by = if schedulers.len() > 1 { format!(" (scheduler {})", clean(&scheduler.name)) } else { String::new() };
    let end = Instant::now() + START;
    loop {
        let (complete, build) = match master.request(request) {
            Ok((asked, build)) => (asked.is_some_and(|r| r.complete), build),
            // The build is on its way all the same, and its end will be told.
            Err(e) => return Ok((format!("asked for {name}{by}, but: {e}"), Some(request))),
        };
        if let Some(build) = build {
            let (_, base) = master.identity()?;
            let url = text::url(&clean(&base), &build);
            return Ok((format!("forced {name} #{}{by} {url}", build.number), Some(request)));
        }
        if complete {
            return Ok((format!("{name}: merged with another request for the same{by}"), None));
        }
        if Instant::now() >= end {
            break;
        }
        sleep(START_POLL);
    }
    let online = master.online(order.builder)?;
    let ahead = master.queued(Some(order.builder))?.iter().filter(|r| r.id < request).count();
    let why = match (online, ahead) {
        (false, _) => "no worker is online".to_owned(),
        (true, 0) => "the workers are busy".to_owned(),
        (true, n) => format!("behind {}", text::count(n, "other")),
    };
    Ok((format!("queued {name}{by}: {why}"), Some(request)))
}

/// What is to be sent for a form: what was asked for, each by its field, and defaults of the fields
/// that must be there.
fn form(order: &Order, leaves: &[&Field]) -> Result<Value, String> {
    let mut sent = json!({ "builderid": order.builder, "reason": order.reason });
    for field in leaves.iter().filter(|f| f.required && f.full_name != "reason") {
        sent[&field.full_name] = field.default.clone();
    }
    for field in leaves.iter().filter(|f| f.kind == "username") {
        sent[&field.full_name] = Value::from(order.who.as_str());
    }
    if order.source.is_empty() && order.codebase.is_some() {
        return Err("--codebase goes with --branch or --revision".into());
    }
    for (key, value) in &order.source {
        let full_name = order.codebase.as_ref().map_or(key.clone(), |codebase| format!("{codebase}_{key}"));
        let mut fields =
            leaves.iter().filter(|f| f.full_name == full_name || (order.codebase.is_none() && f.name == *key));
        match (fields.next(), fields.next()) {
            (Some(field), None) => sent[&field.full_name] = checked(field, value)?,
            (Some(_), Some(_)) => return Err(format!("--{key}: several codebases have one; add --codebase=NAME")),
            (None, _) => return Err(format!("--{key}: the scheduler does not ask for {full_name}")),
        }
    }
    for (key, value) in &order.properties {
        // Who asks and why is not theirs to set.
        let fields = leaves.iter().filter(|f| f.kind != "username" && f.full_name != "reason");
        let named = fields.clone().find(|f| f.full_name == *key || f.name == *key);
        // A pair of fields for any property: `x_name` and `x_value`, not taken yet.
        let any = fields.clone().find_map(|f| {
            f.full_name.strip_suffix("_name").filter(|stem| {
                let value = format!("{stem}_value");
                leaves.iter().any(|f| f.full_name == value) && sent.get(&value).is_none()
            })
        });
        match (named, any) {
            (Some(field), _) => sent[&field.full_name] = checked(field, value)?,
            (None, Some(stem)) => {
                sent[format!("{stem}_name")] = Value::from(key.as_str());
                sent[format!("{stem}_value")] = Value::from(value.as_str());
            }
            (None, None) => {
                // The fields that have options of their own are no properties.
                let known = leaves.iter().filter(|f| !OWN.contains(&f.name.as_str())).map(|f| f.full_name.as_str());
                let known: Vec<&str> = known.collect();
                return Err(format!("--props: no property {key}; there are {}", known.join(" ")));
            }
        }
    }
    Ok(sent)
}

/// A value as the field's type wants it.
fn checked(field: &Field, value: &str) -> Result<Value, String> {
    let shown = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let name = &field.full_name;
    match field.kind.as_str() {
        "int" => value.parse::<i64>().map(Value::from).map_err(|_| format!("{name}: `{value}` is not a whole number")),
        "bool" => match value.to_ascii_lowercase().as_str() {
            "yes" | "true" | "on" | "1" => Ok(Value::from(true)),
            "no" | "false" | "off" | "0" => Ok(Value::from(false)),
            _ => Err(format!("{name}: `{value}` is neither yes nor no")),
        },
        "fixed" if value != shown(&field.default) => Err(format!("{name} is fixed to {}", shown(&field.default))),
        "list" if field.strict && field.choices.iter().all(|c| shown(c) != value) => {
            let choices: Vec<String> = field.choices.iter().map(shown).collect();
            Err(format!("{name}: `{value}` is none of {}", choices.join(", ")))
        }
        _ => Ok(Value::from(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form of a scheduler with two codebases and a field of each type.
    fn leaves() -> Vec<Field> {
        let field = |full_name: &str, kind: &str, required, default: Value| Field {
            name: full_name.rsplit('_').next().unwrap().into(),
            full_name: full_name.into(),
            kind: kind.into(),
            required,
            default,
            strict: true,
            choices: vec!["quick".into(), "full".into()],
            ..Field::default()
        };
        vec![
            field("username", "username", false, "".into()),
            field("reason", "text", true, "because".into()),
            field("app_branch", "text", false, "".into()),
            field("lib_branch", "text", false, "".into()),
            field("lib_revision", "text", false, "".into()),
            field("level", "int", true, 3.into()),
            field("clean", "bool", false, false.into()),
            field("mode", "list", false, "quick".into()),
            field("fix", "fixed", false, "f".into()),
            field("extra_name", "text", false, "".into()),
            field("extra_value", "text", false, "".into()),
        ]
    }

    fn sent(codebase: Option<&str>, source: &[(&str, &str)], properties: &[(&str, &str)]) -> Result<String, String> {
        let own = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let order = Order {
            builder: 7,
            codebase: codebase.map(str::to_owned),
            source: own(source),
            properties: own(properties),
            reason: "r".into(),
            who: "joe <joe@irc.invalid>".into(),
            ..Order::default()
        };
        let leaves = leaves();
        form(&order, &leaves.iter().collect::<Vec<_>>()).map(|v| v.to_string())
    }

    #[test]
    fn who_asks_and_why_cannot_be_set_by_a_property() {
        let forged = [("username", "boss <boss@corp>"), ("reason", "not me")];
        for one in forged {
            let sent = sent(None, &[], &[one]).unwrap();
            assert!(sent.contains(r#""username":"joe <joe@irc.invalid>""#), "{sent}");
            assert!(sent.contains(r#""reason":"r""#), "{sent}");
        }
    }

    #[test]
    fn forms_are_filled_in() {
        let least = r#"{"builderid":7,"level":3,"reason":"r","username":"joe <joe@irc.invalid>"}"#;
        assert_eq!(sent(None, &[], &[]).unwrap(), least);
        let all = [("level", "5"), ("clean", "yes"), ("mode", "full"), ("fix", "f"), ("free", "x")];
        let full = r#"{"builderid":7,"clean":true,"extra_name":"free","extra_value":"x","fix":"f","level":5,"lib_branch":"main","lib_revision":"abc","mode":"full","reason":"r","username":"joe <joe@irc.invalid>"}"#;
        assert_eq!(sent(Some("lib"), &[("branch", "main"), ("revision", "abc")], &all).unwrap(), full);
        for (codebase, source, properties, error) in [
            (None, vec![("branch", "x")], vec![], "--branch: several codebases have one; add --codebase=NAME"),
            (Some("app"), vec![("revision", "x")], vec![], "--revision: the scheduler does not ask for app_revision"),
            (None, vec![], vec![("level", "x")], "level: `x` is not a whole number"),
            (None, vec![], vec![("clean", "x")], "clean: `x` is neither yes nor no"),
            (None, vec![], vec![("mode", "x")], "mode: `x` is none of quick, full"),
            (None, vec![], vec![("fix", "x")], "fix is fixed to f"),
            (
                None,
                vec![],
                vec![("a", "1"), ("b", "2")],
                "--props: no property b; there are level clean mode fix extra_name extra_value",
            ),
        ] {
            assert_eq!(sent(codebase, &source, &properties).unwrap_err(), error);
        }
    }
}
