//! Real IRC servers with their services, and the people on them.

use super::{Certificates, Process, START, TIMEOUT, daemon, fill, free_port, scratch};
use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// ngIRCd: no services, no tags, hardly a capability, and strict about lengths.
pub struct Ngircd {
    pub port: u16,
    /// 0 without certificates.
    pub tls_port: u16,
    dir: PathBuf,
    process: Option<Process>,
}

/// All off by default.
#[derive(Default)]
pub struct NgircdOptions<'a> {
    pub password: Option<&'a str>,
    /// Adds a TLS port with this certificate of [`Certificates`] (`server`, `wrong`, `expired`).
    pub certificate: Option<&'a str>,
    /// Delays those who talk fast, as ngIRCd does out of the box.
    pub penalties: bool,
    /// Sections to add, `[Operator]` or `[Channel]`.
    pub extra: &'a str,
}

impl Ngircd {
    #[track_caller]
    pub fn start(options: NgircdOptions) -> Ngircd {
        let dir = scratch("ngircd");
        let mut server = Ngircd {
            port: free_port(),
            tls_port: 0,
            dir,
            process: None,
        };
        let mut text = format!(
            "[Global]\nName = irc.lab.test\nInfo = ngIRCd under test\nAdminInfo1 = lab\nListen = 127.0.0.1\n\
             Ports = {}\nMotdPhrase = lab\n{}\n[Limits]\nMaxConnectionsIP = 0\nMaxJoins = 0\nMaxNickLength = 16\n\
             MaxPenaltyTime = {}\n[Options]\nDNS = no\nIdent = no\nPAM = no\nOperCanUseMode = yes\n",
            server.port,
            options
                .password
                .map(|password| format!("Password = {password}"))
                .unwrap_or_default(),
            if options.penalties { -1 } else { 0 },
        );
        if let Some(name) = options.certificate {
            let file = |name: &str| Certificates::get().path(name);
            server.tls_port = free_port();
            text += &format!(
                "[SSL]\nPorts = {}\nCertFile = {}\n",
                server.tls_port,
                file(&format!("{name}.pem"))
            );
            // Without DH parameters it computes some, for a second or ten.
            text += &format!(
                "KeyFile = {}\nDHFile = {}\n",
                file(&format!("{name}.key")),
                file("dh.pem")
            );
        }
        fs::write(server.dir.join("ngircd.conf"), text + options.extra).unwrap();
        server.start_again();
        server
    }

    /// With the same ports and configuration.
    #[track_caller]
    pub fn start_again(&mut self) {
        let mut command = daemon("ngircd");
        command
            .args(["--nodaemon", "--config"])
            .arg(self.dir.join("ngircd.conf"));
        let mut process = Process::start("ngircd", command);
        process.wait_for("the server to be ready", START, |process| {
            process.output().contains(" ready.").then_some(())
        });
        self.process = Some(process);
    }

    pub fn stop(&mut self) {
        self.process = None;
    }

    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// The process, to STOP and CONT it.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("ngircd does not run")
    }
}

/// InspIRCd 3, and Anope 2.0 if there are to be services.
pub struct Inspircd {
    /// With the limits of the distribution's package: for the bot.
    pub port: u16,
    /// Without them: for people.
    pub easy: u16,
    /// TLS, the package's limits, client certificates asked for; 0 without.
    pub tls_port: u16,
    dir: PathBuf,
    link: u16,
    server: Option<Process>,
    services: Option<Process>,
}

/// All off by default.
#[derive(Default)]
pub struct InspircdOptions<'a> {
    pub services: bool,
    pub certificate: Option<&'a str>,
    /// More lines for inspircd.conf.
    pub extra: &'a str,
}

impl Inspircd {
    #[track_caller]
    pub fn start(services: bool) -> Inspircd {
        Inspircd::start_with(InspircdOptions {
            services,
            ..Default::default()
        })
    }

    #[track_caller]
    pub fn start_with(options: InspircdOptions) -> Inspircd {
        let (port, easy, link, dir) = (free_port(), free_port(), free_port(), scratch("inspircd"));
        let mut irc = Inspircd {
            port,
            easy,
            tls_port: 0,
            dir,
            link,
            server: None,
            services: None,
        };
        let mut template = include_str!("inspircd.conf").to_string() + options.extra;
        if let Some(name) = options.certificate {
            irc.tls_port = free_port();
            let file = |end| Certificates::get().path(&format!("{name}.{end}"));
            template += &format!(
                "\n<module name=\"ssl_gnutls\">\n<module name=\"sslinfo\">\n\
                 <sslprofile name=\"tls\" provider=\"gnutls\" certfile=\"{}\" keyfile=\"{}\" hash=\"sha256\" \
                 requestclientcert=\"yes\">\n<bind address=\"127.0.0.1\" port=\"{}\" type=\"clients\" sslprofile=\"tls\">\n",
                file("pem"),
                file("key"),
                irc.tls_port
            );
        }
        let (p, e, l) = (port.to_string(), easy.to_string(), link.to_string());
        let dir = irc.dir.to_str().unwrap();
        let values = [
            ("PORT", p.as_str()),
            ("EASY", &e),
            ("LINK", &l),
            ("DIR", dir),
        ];
        fill(&irc.dir.join("inspircd.conf"), &template, &values);
        fill(
            &irc.dir.join("services.conf"),
            include_str!("anope.conf"),
            &values,
        );
        fs::write(irc.dir.join("motd.txt"), "lab\n").unwrap();
        irc.start_server();
        if options.services {
            irc.start_services();
        }
        irc
    }

    #[track_caller]
    fn start_server(&mut self) {
        let mut command = daemon("inspircd");
        command
            .args(["--nofork", "--runasroot", "--config"])
            .arg(self.dir.join("inspircd.conf"));
        let mut process = Process::start("inspircd", command);
        process.wait_port(self.easy);
        self.server = Some(process);
    }

    /// Starts Anope and waits until it has linked and NickServ is there.
    #[track_caller]
    pub fn start_services(&mut self) {
        let mut command = daemon("anope");
        command.args([
            "--nofork",
            "--localedir=/usr/share/anope/locale",
            "--modulesdir=/usr/lib/anope",
        ]);
        for option in ["--confdir", "--dbdir", "--logdir"] {
            command.arg(format!("{option}={}", self.dir.display()));
        }
        let mut process = Process::start("anope", command);
        let person = Client::connect(self.easy, "lab-services");
        process.wait_for("the link", START, |_| {
            person.send("USERHOST NickServ");
            let answer = person.expect(|line| line.contains(" 302 "));
            answer.contains("NickServ=").then_some(())
        });
        self.services = Some(process);
    }

    /// Services go, their registered nicks stay on file.
    pub fn stop_services(&mut self) {
        self.services = None;
    }

    /// Restarts the server; services are started again if they ran.
    #[track_caller]
    pub fn restart(&mut self) {
        let services = self.services.take().is_some();
        self.server = None;
        self.start_server();
        if services {
            self.start_services();
        }
    }
}

#[derive(Default)]
struct Conversation {
    /// What came, without line ends.
    lines: Vec<String>,
    /// The same and what was sent, for the reader of a failed test.
    both: Vec<String>,
    closed: bool,
}

/// A person on IRC. Expectations look at what came since the last one that was met.
pub struct Client {
    pub nick: String,
    stream: TcpStream,
    shared: Arc<(Mutex<Conversation>, Condvar)>,
    next: Cell<usize>,
    tokens: Cell<usize>,
}

impl Client {
    #[track_caller]
    pub fn connect(port: u16, nick: &str) -> Client {
        Client::connect_with(port, nick, &[])
    }

    /// Sends some lines (PASS …) before NICK and USER.
    #[track_caller]
    pub fn connect_with(port: u16, nick: &str, first: &[&str]) -> Client {
        let stream =
            TcpStream::connect(("127.0.0.1", port)).unwrap_or_else(|e| panic!("{nick}: {e}"));
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        let shared = Arc::<(Mutex<Conversation>, Condvar)>::default();
        let (reader, listener) = (BufReader::new(stream.try_clone().unwrap()), shared.clone());
        std::thread::spawn(move || listen(reader, &listener));
        let client = Client {
            nick: nick.to_string(),
            stream,
            shared,
            next: Cell::new(0),
            tokens: Cell::new(0),
        };
        first.iter().for_each(|line| client.send(line));
        client.send(&format!("NICK {nick}"));
        client.send(&format!("USER {nick} 0 * :{nick} of the lab"));
        client.expect(|line| line.contains(" 376 ") || line.contains(" 422 "));
        client
    }

    /// Sends a line as it is.
    pub fn send(&self, line: &str) {
        self.shared
            .0
            .lock()
            .unwrap()
            .both
            .push(format!(">> {line}"));
        let _ = (&self.stream).write_all(format!("{line}\r\n").as_bytes()); // a closed one shows in the next expect
    }

    pub fn say(&self, target: &str, text: &str) {
        self.send(&format!("PRIVMSG {target} :{text}"));
    }

    #[track_caller]
    pub fn join(&self, channel: &str) {
        self.join_key(channel, "");
    }

    #[track_caller]
    pub fn join_key(&self, channel: &str, key: &str) {
        self.send(&format!("JOIN {channel} {key}"));
        self.expect(|line| line.contains(" 366 ") && line.contains(&format!(" {channel} ")));
    }

    /// The next line that the closure likes; those before it are done with.
    #[track_caller]
    pub fn expect(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.await_line("a certain line", TIMEOUT, wanted)
    }

    #[track_caller]
    pub fn expect_contains(&self, text: &str) -> String {
        self.expect_within(text, TIMEOUT)
    }

    #[track_caller]
    pub fn expect_within(&self, text: &str, limit: Duration) -> String {
        self.await_line(&format!("{text:?}"), limit, |line| line.contains(text))
    }

    #[track_caller]
    fn await_line(&self, what: &str, limit: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let (mutex, changed) = &*self.shared;
        let end = Instant::now() + limit;
        let mut talk = mutex.lock().unwrap();
        let mut at = self.next.get();
        loop {
            while at < talk.lines.len() {
                at += 1;
                if wanted(&talk.lines[at - 1]) {
                    self.next.set(at);
                    return talk.lines[at - 1].clone();
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if talk.closed || left.is_zero() {
                let why = if talk.closed {
                    "the connection was closed"
                } else {
                    "time is up"
                };
                let all = talk.both.join("\n  ");
                drop(talk); // or the panic would poison it for those who report
                panic!(
                    "{} waited for {what}, but {why}; the conversation:\n  {all}",
                    self.nick
                );
            }
            talk = changed.wait_timeout(talk, left).unwrap().0;
        }
    }

    /// PING and its PONG: the server has dealt with all we sent. Returns how many lines had come by then;
    /// expectations still see every line.
    #[track_caller]
    pub fn barrier(&self) -> usize {
        self.tokens.set(self.tokens.get() + 1);
        let token = format!("barrier-{}", self.tokens.get());
        self.send(&format!("PING :{token}"));
        let before = self.next.get();
        self.expect(|line| line.contains(" PONG ") && line.ends_with(&token));
        self.next.replace(before);
        self.shared
            .0
            .lock()
            .unwrap()
            .lines
            .iter()
            .position(|line| line.ends_with(&token))
            .unwrap()
    }

    /// Forgets what came until now.
    #[track_caller]
    pub fn skip(&self) {
        let until = self.barrier() + 1;
        self.next.set(self.next.get().max(until));
    }

    /// No line since the last met expectation and before a barrier holds this text. That is a barrier with the
    /// server only: whoever should have spoken must be known to have had its turn.
    #[track_caller]
    pub fn expect_none(&self, text: &str) {
        let until = self.barrier();
        let talk = self.shared.0.lock().unwrap();
        let found = talk.lines[self.next.get().min(until)..until]
            .iter()
            .find(|line| line.contains(text))
            .cloned();
        drop(talk);
        assert!(
            found.is_none(),
            "{} did not want {text:?}; the conversation:\n  {}",
            self.nick,
            self.conversation()
        );
    }

    /// Both directions, for a message.
    pub fn conversation(&self) -> String {
        self.shared.0.lock().unwrap().both.join("\n  ")
    }

    /// What was said to a channel (or to our nick) so far: `<nick> text` for a PRIVMSG, `-nick- text` for a NOTICE.
    pub fn lines(&self, target: &str) -> Vec<String> {
        self.shared
            .0
            .lock()
            .unwrap()
            .lines
            .iter()
            .filter_map(|line| said(line, target))
            .collect()
    }

    /// Registers our nick with NickServ, which logs us in as well.
    #[track_caller]
    pub fn register(&self, password: &str) {
        self.say(
            "NickServ",
            &format!("REGISTER {password} {}@example.org", self.nick),
        );
        self.expect(|line| line.contains(" 900 ") || line.contains("registered"));
    }

    /// Makes NickServ know the client certificate that we came with (through a [`super::Tunnel`]).
    #[track_caller]
    pub fn add_certificate(&self) {
        self.say("NickServ", "CERT ADD");
        self.expect_contains("'s certificate list");
    }

    #[track_caller]
    pub fn identify(&self, password: &str) {
        self.say("NickServ", &format!("IDENTIFY {password}"));
        self.expect_contains("you are now recognized");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = (&self.stream).write_all(b"QUIT\r\n");
        let _ = self.stream.shutdown(Shutdown::Both); // which ends the thread that reads
    }
}

fn listen(mut reader: BufReader<TcpStream>, shared: &(Mutex<Conversation>, Condvar)) {
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
        let line = String::from_utf8_lossy(&bytes)
            .trim_end_matches(['\r', '\n'])
            .to_string();
        bytes.clear();
        if let Some(token) = line.strip_prefix("PING ") {
            let _ = reader
                .get_ref()
                .write_all(format!("PONG {token}\r\n").as_bytes());
        }
        let mut talk = shared.0.lock().unwrap();
        talk.both.push(format!("<< {line}"));
        talk.lines.push(line);
        shared.1.notify_all();
    }
    shared.0.lock().unwrap().closed = true;
    shared.1.notify_all();
}

fn said(line: &str, target: &str) -> Option<String> {
    let line = if line.starts_with('@') {
        line.split_once(' ')?.1
    } else {
        line
    };
    let (prefix, rest) = line.strip_prefix(':')?.split_once(' ')?;
    let (command, rest) = rest.split_once(' ')?;
    let (to, text) = rest.split_once(' ')?;
    let nick = prefix.split('!').next()?;
    let text = text.strip_prefix(':').unwrap_or(text);
    match command {
        _ if !to.eq_ignore_ascii_case(target) => None,
        "PRIVMSG" => Some(format!("<{nick}> {text}")),
        "NOTICE" => Some(format!("-{nick}- {text}")),
        _ => None,
    }
}
