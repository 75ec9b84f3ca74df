//! Runs over TLS, against rustls' server in front of the fake gateway: handshakes are counted on both
//! sides, and what cannot work is said before anything is measured.

use crate::support::{
    Listening, Setup, fails_with,
    fake_gateway::{FakeGateway, Fault},
    front::{Faults, Front, Identity},
    pairs,
};
use serde_json::Value;
use std::fs;

/// A gateway behind TLS, and a data directory as it leaves one.
struct Secured {
    gateway: FakeGateway,
    front: Front,
    setup: Setup,
}

impl Secured {
    fn new() -> Self {
        let gateway = FakeGateway::start(Fault::None);
        let identity = Identity::self_signed();
        let front = Front::start(&identity, gateway.address, Faults::default());
        let setup = Setup::new();
        fs::write(setup.file("tls-cert.pem"), identity.trusted).expect("written");
        Self {
            gateway,
            front,
            setup,
        }
    }

    fn target(&self) -> String {
        self.front.address.to_string()
    }

    #[track_caller]
    fn passes(&self, flags: &str) -> Value {
        let (output, result) = self.setup.measure(&self.target(), flags);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(result["verdict"], "pass", "{text} {}", result["reasons"]);
        result
    }
}

/// Handshakes that a result tells, full ones and resumed ones.
fn handshakes(result: &Value) -> (u64, u64) {
    let count = |name: &str| result["tls"][name].as_u64().expect("a number");
    (count("handshakes_full"), count("handshakes_resumed"))
}

#[test]
fn a_plan_is_carried_out_over_tls() {
    let secured = Secured::new();
    let result = secured.passes(&pairs("--tls"));
    assert_eq!(result["delivered"], 400);
    assert_eq!(handshakes(&result), (20, 0));
    let times = &result["tls"]["handshake_us"];
    assert_eq!(times["samples"], 20);
    assert!(times["p50"].as_u64() > Some(0) && times["p99"].as_u64() > Some(0));
    assert!(result["tls"]["generator_bytes_per_session"].is_f64());
    assert_eq!(result["workload"]["tls"], serde_json::json!({}));
    // Nobody asked for it: nothing is said of it.
    let plain = pairs("--rate 20 --duration 1s");
    let (_, result) = secured
        .setup
        .measure(&secured.gateway.address.to_string(), &plain);
    assert_eq!(result["verdict"], "pass", "{result:#}");
    assert!(result["tls"].is_null());
}

#[test]
fn those_who_come_back_resume() {
    let secured = Secured::new();
    let result = secured.passes(
        "storm --tls --connections 20 --rate 100 --duration 2s --at 500ms --share 0.5 --slip-max 1m",
    );
    assert_eq!(result["cut"], 10);
    assert_eq!(handshakes(&result), (20, 10));
    // The look at the target before the run is one more.
    let seen = secured.front.handshakes();
    assert!(seen.0 >= 21 && seen.1 >= 10, "{seen:?}");
}

#[test]
fn a_share_resumes_and_the_reports_say_so() {
    let secured = Secured::new();
    let page = secured.setup.file("page.html");
    let flags = pairs(&format!(
        "--tls --tls-resume 0 --rate 20 --duration 1s --html {}",
        page.display()
    ));
    let result = secured.passes(&flags);
    assert_eq!(handshakes(&result), (20, 0));
    let html = fs::read_to_string(page).expect("written");
    for part in ["TLS handshake", "TLS, full"] {
        assert!(html.contains(part), "{part}");
    }
    let result = secured.passes(&pairs("--tls --tls-resume 1 --rate 20 --duration 1s"));
    let (full, resumed) = handshakes(&result);
    assert_eq!(full + resumed, 20);
    assert!(full > 0, "somebody has to be the first");
}

#[test]
fn connections_are_held_over_tls_and_resume_after_the_cut() {
    let secured = Secured::new();
    let result = secured.passes(
        "hold --tls --connections 40 --active 10 --ramp 100 --settle 1s --rate 40 --duration 6s \
         --cut --slip-max 1m",
    );
    let hold = &result["hold"];
    assert_eq!(handshakes(&hold["ramp"]), (30, 0), "{hold:#}");
    assert_eq!(handshakes(&hold["return"]), (0, 30), "{hold:#}");
    assert_eq!(handshakes(&result), (40, 30));
    let bytes = &result["tls"]["generator_bytes_per_session"];
    assert_eq!(*bytes, hold["generator"]["rss_bytes_per_connection"]);
}

#[test]
fn workers_elsewhere_are_told_whom_to_trust() {
    let secured = Secured::new();
    let workers: Vec<Listening> = (0..2)
        .map(|_| Listening::start(["worker", "--listen", "127.0.0.1:0"]))
        .collect();
    let list: Vec<String> = workers
        .iter()
        .map(|worker| worker.address.to_string())
        .collect();
    let result = secured.passes(&pairs(&format!("--tls --workers {}", list.join(","))));
    assert_eq!(result["delivered"], 400);
    assert_eq!(handshakes(&result), (20, 0));
    assert!(result["tls"]["generator_bytes_per_session"].is_null());
}

#[test]
fn a_plan_in_a_file_may_say_how_tls_is_spoken() {
    let secured = Secured::new();
    let other = Identity::made(&["chat.example.org"], |_| {});
    let front = Front::start(&other, secured.gateway.address, Faults::default());
    let (ca, plan) = (secured.setup.file("ca.pem"), secured.setup.file("own.toml"));
    fs::write(&ca, other.trusted).expect("written");
    let text = format!(
        "name = \"own\"\nconnections = 4\nrate = 20\nduration = \"1s\"\n\
         [tls]\nca = \"{}\"\nname = \"chat.example.org\"\nresume = 0.0\n",
        ca.display()
    );
    fs::write(&plan, text).expect("written");
    let flags = format!("{} --slip-max 1m", plan.display());
    let (_, result) = secured.setup.measure(&front.address.to_string(), &flags);
    assert_eq!(result["verdict"], "pass", "{result:#}");
    assert_eq!(handshakes(&result), (4, 0));
}

#[test]
fn what_cannot_work_is_said_at_once() {
    let secured = Secured::new();
    let target = secured.target();
    let run = |target: &str, flags: &str| secured.setup.run(target, flags);
    let plain = secured.gateway.address.to_string();
    // The fake gateway hangs up on what it does not understand.
    fails_with(
        &run(&plain, "smoke --tls"),
        &["no TLS with", "--tls-listen"],
    );
    fails_with(&run(&target, "smoke"), &["speaks TLS", "add --tls"]);
    fails_with(
        &run(&target, "hold --connections 20 --active 4 --settle 1s"),
        &["speaks TLS", "add --tls"],
    );
    fails_with(
        &run(&target, "smoke --tls --tls-name chat.example.org"),
        &["chat.example.org", "localhost", "--tls-name"],
    );
    let stranger = secured.setup.file("stranger.pem");
    fs::write(&stranger, Identity::self_signed().trusted).expect("written");
    let flags = format!("smoke --tls --tls-ca {}", stranger.display());
    fails_with(
        &run(&target, &flags),
        &["nobody who is trusted", "--tls-ca"],
    );
    let missing = format!("smoke --tls --tls-ca {}x", stranger.display());
    fails_with(&run(&target, &missing), &["cannot read", "--tls-ca"]);
    fails_with(
        &run(&target, "relay --tls --protocol nats"),
        &["--tls is about Portico"],
    );
}
