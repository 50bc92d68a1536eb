//! One lab for all tests: it starts the servers that a test names, writes the bot's configuration for them, starts the
//! bot, and connects people on IRC.
//!
//! A server that a test does not name is not started: its address is then one that refuses connections.

use super::{
    Bot, Client, FakeHttp, FakeIrc, FakePeer, Finished, Hybrid, Inspircd, InspircdOptions, Master,
    Ngircd, NgircdOptions, Worker, config_dir,
};

/// Nobody listens on port 1.
pub const NO_MASTER: &str = "http://127.0.0.1:1/";
const NO_IRC: u16 = 1;
/// Lines of `[buildbot]`: frequent polls and no event stream.
pub const POLLING: &str = "poll_interval = 200ms\nevent_stream = no";
/// Lines that end `[irc]`: the bot announces in #lab what ends.
pub const ANNOUNCING: &str = "notify_events = finished\n[channel #lab]";

pub struct Lab {
    /// Where the bot finds its master; a test may put a [`super::Proxy`] here.
    pub master_url: String,
    /// Where the bot finds its IRC server; a test may put a proxy or a TLS port here.
    pub irc_port: u16,
    /// Where people connect.
    people_port: u16,
    master: Option<Master>,
    fake_master: Option<FakeHttp>,
    workers: Vec<Worker>,
    ngircd: Option<Ngircd>,
    inspircd: Option<Inspircd>,
    hybrid: Option<Hybrid>,
    fake_irc: Option<FakeIrc>,
}

impl Lab {
    /// Without servers.
    pub fn new() -> Lab {
        Lab {
            master_url: NO_MASTER.to_string(),
            irc_port: NO_IRC,
            people_port: NO_IRC,
            master: None,
            fake_master: None,
            workers: Vec::new(),
            ngircd: None,
            inspircd: None,
            hybrid: None,
            fake_irc: None,
        }
    }

    /// A real master with this configuration; `name` is for its directory.
    #[track_caller]
    pub fn with_master(self, name: &str, config: &str) -> Lab {
        self.with_running_master(Master::start(name, config))
    }

    /// A real master that the test has started.
    pub fn with_running_master(mut self, master: Master) -> Lab {
        self.master_url = master.url();
        self.master = Some(master);
        self
    }

    /// A real worker of the real master.
    #[track_caller]
    pub fn with_worker(mut self, name: &str) -> Lab {
        self.start_worker(name);
        self
    }

    /// A master's web server that the test plays.
    pub fn with_fake_master(mut self, server: FakeHttp) -> Lab {
        self.master_url = server.url();
        self.fake_master = Some(server);
        self
    }

    #[track_caller]
    pub fn with_ngircd(self) -> Lab {
        self.with_ngircd_options(NgircdOptions::default())
    }

    #[track_caller]
    pub fn with_ngircd_options(mut self, options: NgircdOptions) -> Lab {
        let server = Ngircd::start(options);
        self.irc_port = server.port;
        self.people_port = server.port;
        self.ngircd = Some(server);
        self
    }

    #[track_caller]
    pub fn with_inspircd(self) -> Lab {
        self.with_inspircd_options(InspircdOptions::default())
    }

    /// InspIRCd with Anope.
    #[track_caller]
    pub fn with_services(self) -> Lab {
        self.with_inspircd_options(InspircdOptions {
            services: true,
            ..InspircdOptions::default()
        })
    }

    #[track_caller]
    pub fn with_inspircd_options(mut self, options: InspircdOptions) -> Lab {
        let server = Inspircd::start_with(options);
        self.irc_port = server.port;
        self.people_port = server.easy_port;
        self.inspircd = Some(server);
        self
    }

    #[track_caller]
    pub fn with_hybrid(mut self) -> Lab {
        let server = Hybrid::start();
        self.irc_port = server.port;
        self.people_port = server.port;
        self.hybrid = Some(server);
        self
    }

    pub fn with_fake_irc(self) -> Lab {
        self.with_running_fake_irc(FakeIrc::start())
    }

    /// A fake IRC server that the test has started.
    pub fn with_running_fake_irc(mut self, server: FakeIrc) -> Lab {
        self.irc_port = server.port;
        self.fake_irc = Some(server);
        self
    }

    #[track_caller]
    pub fn master(&self) -> &Master {
        self.master.as_ref().expect("this lab has no real master")
    }

    #[track_caller]
    pub fn master_mut(&mut self) -> &mut Master {
        self.master.as_mut().expect("this lab has no real master")
    }

    #[track_caller]
    pub fn fake_master(&self) -> &FakeHttp {
        let server = self.fake_master.as_ref();
        server.expect("this lab has no fake master")
    }

    #[track_caller]
    pub fn ngircd(&mut self) -> &mut Ngircd {
        self.ngircd.as_mut().expect("this lab has no ngIRCd")
    }

    #[track_caller]
    pub fn inspircd(&mut self) -> &mut Inspircd {
        self.inspircd.as_mut().expect("this lab has no InspIRCd")
    }

    #[track_caller]
    pub fn fake_irc(&self) -> &FakeIrc {
        let server = self.fake_irc.as_ref();
        server.expect("this lab has no fake IRC server")
    }

    #[track_caller]
    pub fn start_worker(&mut self, name: &str) {
        let worker = Worker::start(self.master(), name);
        self.workers.push(worker);
    }

    /// Stops a worker and waits until the master has noticed.
    #[track_caller]
    pub fn stop_worker(&mut self, name: &str) {
        let index = self.workers.iter().position(|worker| worker.name == name);
        let worker = self.workers.remove(index.expect("this worker runs"));
        worker.stop(self.master());
    }

    /// Replaces the workers by new ones: the old ones would come back to a restarted master, but slowly.
    #[track_caller]
    pub fn restart_workers(&mut self) {
        let workers = std::mem::take(&mut self.workers);
        let names: Vec<String> = workers.iter().map(|worker| worker.name.clone()).collect();
        drop(workers);
        for name in names {
            self.start_worker(&name);
        }
    }

    /// Ends the workers, then the master.
    #[track_caller]
    pub fn stop_master(&mut self) {
        self.workers.clear();
        self.master_mut().stop();
    }

    /// bot.conf: more lines of `[buildbot]`, then lines that end `[irc]` and may begin other sections.
    pub fn config(&self, nick: &str, buildbot: &str, irc: &str) -> String {
        let mut text = format!("[buildbot]\nurl = {}\n", self.master_url);
        if !buildbot.is_empty() {
            text += buildbot;
            text += "\n";
        }
        text += &format!(
            "[irc]\nhost = 127.0.0.1\nport = {}\nnick = {nick}\n{irc}\n",
            self.irc_port
        );
        text
    }

    /// Starts a bot with the nick `bot`.
    pub fn start(&self, irc: &str) -> Bot {
        self.start_as("bot", "", irc)
    }

    pub fn start_as(&self, nick: &str, buildbot: &str, irc: &str) -> Bot {
        Bot::start(&self.config(nick, buildbot, irc))
    }

    /// Starts a bot and waits until it is in its channels and knows the master.
    #[track_caller]
    pub fn start_ready(&self, nick: &str, buildbot: &str, irc: &str) -> Bot {
        let mut bot = self.start_as(nick, buildbot, irc);
        bot.wait_ready();
        bot
    }

    /// Starts a bot that announces in #lab what ends, on the fake IRC server.
    #[track_caller]
    pub fn start_announcing(&self, buildbot: &str) -> (Bot, FakePeer) {
        let bot = self.start_as("bot", buildbot, ANNOUNCING);
        (bot, self.accept())
    }

    /// Takes the bot's connection to the fake IRC server through registration and into #lab.
    #[track_caller]
    pub fn accept(&self) -> FakePeer {
        self.fake_irc().accept_into("#lab")
    }

    /// A person in these channels of the real IRC server.
    #[track_caller]
    pub fn person(&self, nick: &str, channels: &[&str]) -> Client {
        let person = Client::connect(self.people_port, nick);
        for channel in channels {
            person.join(channel);
        }
        person
    }

    /// A build of a gated builder from its start to its end.
    #[track_caller]
    pub fn build(&self, builder: &str, number: i64, result: i64) {
        let master = self.master();
        master.force(builder, &[]);
        master.release(builder, result);
        let build = master.wait_build(builder, number);
        assert_eq!(build["results"], result, "{build}");
    }

    /// Runs the program with `-x` against the lab's master.
    #[track_caller]
    pub fn execute(&self, command: &str) -> Finished {
        execute(&self.master_url, "", command)
    }
}

/// Runs the program with `-x` and a configuration that has `[buildbot]` only.
#[track_caller]
pub fn execute(master_url: &str, buildbot: &str, command: &str) -> Finished {
    let dir = config_dir(&format!("[buildbot]\nurl = {master_url}\n{buildbot}\n"));
    Bot::run(&dir, &["-x", command])
}
