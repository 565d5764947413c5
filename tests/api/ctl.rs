//! `tinyvmm ctl`.

use super::{SOCKET, running};
use crate::fixture::{Outcome, Vmm};
use crate::guests;

fn ctl(client: &super::Client, args: &[&str]) -> Outcome {
    Vmm::new().args(["ctl", client.0.to_str().unwrap()]).args(args).run()
}

#[test]
fn a_person_can_do_everything_with_it() {
    let (running, client) = running(guests::obedient, "ready");
    ctl(&client, &["status"]).exits(0).prints("Running").silently();
    ctl(&client, &["pause"]).exits(0).silently();
    let status = ctl(&client, &["status", "--json"]).exits(0);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["state"], "Paused");
    ctl(&client, &["resume"]).exits(0).silently();
    ctl(&client, &["stats"]).exits(0).prints("memory_kib configured").prints("262144").silently();
    ctl(&client, &["balloon", "8M"]).exits(0).silently();
    assert_eq!(client.get("/balloon")["amount_mib"], 8);
    ctl(&client, &["balloon", "1T"]).refuses(1, &["amount_mib", "ask for less"]);
    ctl(&client, &["balloon", "5K"]).refuses(1, &["whole number of M"]);
    let watching =
        Vmm::new().args(["ctl", client.0.to_str().unwrap(), "status", "--watch"]).start();
    let watching = watching.prints("Running");
    ctl(&client, &["power-button"]).exits(0).silently();
    running.wait().exits(0).prints("button").silently();
    // What it watches is gone.
    watching.wait().exits(0).silently();
    ctl(&client, &["status"]).refuses(1, &[SOCKET, "no machine listens"]);
}

#[test]
fn it_can_end_a_machine_that_does_not_listen() {
    let (running, client) = running(guests::idle, "idle");
    ctl(&client, &["pause", "--watch"]).refuses(1, &["--watch"]);
    ctl(&client, &["stop"]).exits(0).silently();
    running.wait().exits(8).says(&["stopped over the API"]).leaves_nothing();
}
