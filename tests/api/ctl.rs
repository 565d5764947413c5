//! `tinyvmm ctl`.

use super::{SOCKET, running};
use crate::fixture::Vmm;
use crate::guests;

#[test]
fn a_person_can_do_everything_with_it() {
    let (running, client) = running(guests::obedient, "ready");
    client.ctl(&["status"]).exits(0).prints("Running").silently();
    client.ctl(&["pause"]).exits(0).silently();
    let status = client.ctl(&["status", "--json"]).exits(0);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["state"], "Paused");
    client.ctl(&["resume"]).exits(0).silently();
    client.ctl(&["stats"]).exits(0).prints("memory_kib configured").prints("262144").silently();
    client.ctl(&["balloon", "8M"]).exits(0).silently();
    assert_eq!(client.get("/balloon")["amount_mib"], 8);
    client.ctl(&["balloon", "1T"]).refuses(1, &["amount_mib", "ask for less"]);
    client.ctl(&["balloon", "5K"]).refuses(2, &["whole number of M"]);
    let watching =
        Vmm::new().args(["ctl", client.0.to_str().unwrap(), "status", "--watch"]).start();
    let watching = watching.prints("Running").prints("\n\n");
    client.ctl(&["power-button"]).exits(0).silently();
    running.wait().exits(0).prints("button").silently();
    // The machine that it watches has ended.
    let watched = watching.wait().exits(0).silently();
    // Tables, a line apart; nothing that is for a terminal only.
    let text = String::from_utf8(watched.stdout).unwrap();
    assert!(text.starts_with("app_name") && text.contains("\n\napp_name"), "{text:?}");
    assert!(!text.contains('\x1b'), "{text:?}");
    client.ctl(&["status"]).refuses(1, &[SOCKET, "no machine listens"]);
}

#[test]
fn it_can_end_a_machine_that_does_not_listen() {
    let (running, client) = running(guests::idle, "idle");
    client.ctl(&["pause", "--watch"]).refuses(2, &["--watch"]);
    client.ctl(&["stop"]).exits(0).silently();
    running.wait().exits(8).says(&["stopped over the API"]).leaves_nothing();
}
