//! Real workers of a real master.

use super::master::twistd;
use super::{Master, Process, START, TIMEOUT, scratch, wait_for};
use std::fs;

/// A worker process of a master; dropped, it is ended.
pub struct Worker {
    pub name: String,
    process: Process,
}

impl Worker {
    /// Starts one that master.cfg knows (`w1` always) and waits until the master has it.
    #[track_caller]
    pub fn start(master: &Master, name: &str) -> Worker {
        let dir = scratch(&format!("worker-{name}"));
        let tac = format!(
            "from twisted.application import service\nfrom buildbot_worker.bot import Worker\n\
             application = service.Application('buildbot-worker')\n\
             Worker('127.0.0.1', {}, '{name}', 'p', '{}', 600).setServiceParent(application)\n",
            master.worker_port,
            dir.display()
        );
        fs::write(dir.join("buildbot.tac"), tac).unwrap();
        let mut process = Process::start(&format!("worker {name}"), twistd(&dir));
        // Not as soon as it is `online`: a master keeps a worker for good that ends while it is being attached.
        process.wait_for("its master", START, |worker| {
            worker.output().contains("worker is ready").then_some(())
        });
        Worker {
            name: name.to_string(),
            process,
        }
    }

    /// Ends it and waits until the master has noticed. A build that it was running ends as `retry`.
    #[track_caller]
    pub fn stop(mut self, master: &Master) {
        self.process.terminate();
        wait_for("the worker to be offline", TIMEOUT, || {
            (!master.online(&self.name)).then_some(())
        });
    }
}
