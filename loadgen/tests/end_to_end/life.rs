//! Groups, presence, typing and history against the fake gateway, with and without faults that the
//! plans have to notice.

use crate::{
    plans::{fails, number, passes},
    support::fake_gateway::Fault,
};

const GROUPS: &str = "groups --connections 24 --group-sizes 4:0.5,8:0.5 --per-user 2 --rate 40 \
                      --duration 1s --drain 2s";

#[test]
fn every_member_of_a_group_gets_every_message() {
    let result = passes(GROUPS);
    let groups = &result["groups"];
    let members = number(&groups["members"]);
    assert!((36..=48).contains(&members), "{result:#}");
    // 40 messages to groups of 4 and 8, each to all but its author.
    let sent = number(&result["sent"]);
    assert!((40 * 3..=40 * 7).contains(&sent), "{result:#}");
    assert_eq!(number(&result["latency_us"]["samples"]), sent);
    assert_eq!(result["misnumbered"], 0);
    assert_eq!(
        result["not_promised"],
        serde_json::json!(["receipts_missing"])
    );
}

#[test]
fn what_a_group_lacks_or_has_twice_or_out_of_order_is_noticed() {
    let lost = fails(Fault::Drop, GROUPS);
    assert!(number(&lost["lost"]) > 20, "{lost:#}");
    assert_eq!(
        number(&lost["lost"]) + number(&lost["delivered"]),
        number(&lost["accepted"])
    );
    let twice = fails(Fault::Duplicate, GROUPS);
    assert!(number(&twice["duplicated"]) > 20, "{twice:#}");
    let late = fails(Fault::Swap, GROUPS);
    assert!(number(&late["reordered"]) > 10, "{late:#}");
    let numbered = fails(Fault::Misnumber, GROUPS);
    assert!(number(&numbered["misnumbered"]) > 10, "{numbered:#}");
    let damaged = fails(Fault::Corrupt, GROUPS);
    assert!(number(&damaged["corrupt"]) > 20, "{damaged:#}");
}

#[test]
fn members_come_and_go_and_get_what_is_theirs() {
    let flags = "groups --connections 24 --group-sizes 8:1 --per-user 2 --rate 400 --changes 20 \
                 --duration 3s --drain 3s";
    let result = passes(flags);
    let groups = &result["groups"];
    assert!(number(&groups["changes"]) > 20, "{result:#}");
    assert_eq!(groups["after_removal"], 0);
    // Who was outside had less: not every message went to seven.
    assert!(number(&result["sent"]) < 1_200 * 7, "{result:#}");
    let result = fails(Fault::AfterRemoval, flags);
    let strays = number(&result["groups"]["after_removal"]);
    assert!(strays > 20, "{result:#}");
    assert_eq!(number(&result["misrouted"]), strays);
}

#[test]
fn two_storms_and_everybody_watches_after_the_second() {
    let flags = "presence-storm --connections 20 --contacts 5 --rate 50 --duration 6s --at 500ms \
                 --again 3s";
    let result = passes(flags);
    assert_eq!(number(&result["cut"]), 40);
    let presence = &result["presence"];
    assert_eq!(number(&presence["subscriptions"]), 20);
    // Five states in each answer, and one that changes afterwards.
    assert_eq!(number(&presence["items"]), 120);
    assert_eq!(number(&presence["frames"]), 20);
    // The fake gateway is a thread of the test, which is the process accounted to.
    assert!(presence["cpu_us_with"].is_number(), "{result:#}");
}

#[test]
fn signals_arrive_beside_messages() {
    let flags = "typing --connections 20 --rate 50 --signals 40 --duration 2s";
    let result = passes(flags);
    let typing = &result["typing"];
    assert_eq!(number(&typing["signals"]), 80);
    assert_eq!(number(&typing["arrived"]), 80);
    assert_eq!(number(&typing["latency_us"]["samples"]), 80);
}

#[test]
fn pages_of_history_are_timed_and_looked_at() {
    let flags = "history --connections 10 --rate 200 --pages 50 --limit 10 --duration 2s";
    let result = passes(flags);
    let history = &result["history"];
    assert_eq!(number(&history["answered"]), 100);
    assert!(number(&history["entries"]) > 300, "{result:#}");
    assert_eq!(number(&history["page_us"]["samples"]), 100);
    let result = fails(Fault::OldestFirst, flags);
    assert!(
        number(&result["history"]["entries_wrong"]) > 200,
        "{result:#}"
    );
}
