//! Rules and dashboard: valid, tested by promtool, and about metrics and runbook sections that exist.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use serde_yaml::Value;

use super::{files_below, read, repository, scratch, text, tool, write};

const RULES: [&str; 3] = [
    "deploy/prometheus/recording.rules.yaml",
    "deploy/prometheus/alerts.rules.yaml",
    "deploy/prometheus/fleet.rules.yaml",
];

/// The tests of the rules: what each does; under a fault of a day; under one that comes and goes.
const TESTS: [&str; 3] = [
    "deploy/prometheus/tests.yaml",
    "deploy/prometheus/durations.tests.yaml",
    "deploy/prometheus/flapping.tests.yaml",
];

/// Every rule of a rules file.
fn rules(path: &str) -> Vec<Value> {
    let file: Value = serde_yaml::from_str(&read(path)).unwrap();
    file["groups"]
        .as_sequence()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_sequence().unwrap().clone())
        .collect()
}

/// Every query of the dashboard, those of its variables included.
fn dashboard_queries() -> Vec<String> {
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana/crimux.json")).unwrap();
    let targets =
        dashboard["panels"].as_array().unwrap().iter().filter_map(|panel| panel["targets"].as_array());
    let panels = targets.flatten().map(|target| target["expr"].as_str().unwrap().to_owned());
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    panels.chain(variables.filter_map(|variable| variable["definition"].as_str()).map(String::from)).collect()
}

/// Every query of the rules.
fn rule_queries() -> Vec<String> {
    RULES.iter().flat_map(|path| rules(path)).map(|rule| rule["expr"].as_str().unwrap().to_owned()).collect()
}

/// The words of a query that are names of metrics, recorded ones (with a colon) apart.
fn metrics_in(query: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    query
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| ["crimux_", "crimux:", "process_"].iter().any(|start| word.starts_with(start)))
        .map(String::from)
        .partition(|word| !word.contains(':'))
}

/// Every metric of the reference with its type and labels, from the tables of `docs/metrics.md`.
fn reference() -> Vec<(String, String, BTreeSet<String>)> {
    read("docs/metrics.md")
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let name = cells[0].strip_prefix('`')?.strip_suffix('`')?;
            let labels = cells.get(2)?.split(", ").map(|label| label.trim_matches('`').to_owned());
            (cells.len() == 5).then(|| (name.to_owned(), cells[1].to_owned(), labels.collect()))
        })
        .collect()
}

/// The name that the reference gives a series: histograms have three.
fn base(series: &str, known: &BTreeSet<String>) -> String {
    let suffixes = ["_bucket", "_sum", "_count"];
    let stripped = suffixes.iter().find_map(|suffix| series.strip_suffix(suffix));
    stripped.filter(|name| known.contains(*name)).unwrap_or(series).to_owned()
}

#[test]
fn promtool_accepts_the_rules() {
    let Some(mut promtool) = tool("promtool", "prometheus") else { return };
    let output = promtool.args(["check", "rules"]).args(RULES.map(repository)).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn the_rules_pass_their_own_tests() {
    let Some(mut promtool) = tool("promtool", "prometheus") else { return };
    let output = promtool.args(["test", "rules"]).args(TESTS.map(repository)).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// One case of promtool: `nodes` nodes with two backends each, of which the backend `b` of every tenth node
/// is down.
fn fleet(nodes: u32) -> String {
    let mut series = String::new();
    let mut add = |name: &str, labels: String, values: &str| {
        writeln!(series, "      - series: '{name}{{{labels}}}'\n        values: {values}").unwrap();
    };
    for node in 0..nodes {
        let instance = format!("instance=\"n{node}\"");
        add("crimux_build_info", format!("{instance},version=\"0.1.0\""), "1x20");
        add("process_cpu_seconds_total", format!("{instance},job=\"crimux\""), "0+0.3x20");
        for backend in ["a", "b"] {
            let up = if backend == "b" && node % 10 == 0 { "0x20" } else { "1x20" };
            let labels = format!("{instance},backend=\"{backend}\"");
            add("crimux_backend_up", labels.clone(), up);
            add("crimux_list_age_seconds", labels.clone(), "2x20");
            for method in ["ListContainers", "ContainerStatus"] {
                let labels = format!("{labels},method=\"{method}\"");
                add("crimux_requests_total", format!("{labels},code=\"OK\""), "0+30x20");
                for (le, values) in [("0.001", "0+27x20"), ("+Inf", "0+30x20")] {
                    let labels = format!("{labels},le=\"{le}\"");
                    add("crimux_request_duration_seconds_bucket", labels.clone(), values);
                    add("crimux_backend_duration_seconds_bucket", labels, values);
                }
            }
        }
    }
    let asked = |query: &str, value: u32| {
        format!(
            "      - expr: {query}\n        eval_time: 8m\n        exp_samples: [{{ labels: '{{}}', value: {value} }}]\n"
        )
    };
    let per_node = ["requests:rate5m", "backends_down:count", "list_age_seconds:max", "cpu_seconds:rate5m"];
    let mut expected: String =
        per_node.iter().map(|rule| asked(&format!("count(crimux:node_{rule})"), nodes)).collect();
    // A version, two backends three times (all, down, durations of two methods), two methods twice.
    expected += &asked("count({__name__=~\"crimux:fleet_.*\"})", 1 + 2 + 2 + 4 + 2 + 2);
    expected += &asked("sum(crimux:fleet_backends_down:count)", nodes / 10);
    expected += &asked("sum(crimux:fleet_nodes:count)", nodes);
    format!(
        "rule_files: [{}]\nevaluation_interval: 30s\ntests:\n  - interval: 30s\n    input_series:\n{series}    promql_expr_test:\n{expected}",
        repository(RULES[2]).display()
    )
}

#[test]
fn the_view_of_a_fleet_is_one_series_per_node_and_rule_at_most() {
    let Some(mut promtool) = tool("promtool", "prometheus") else { return };
    let directory = scratch("fleet");
    for nodes in [10, 200] {
        let case = directory.join(format!("{nodes}.yaml"));
        write(&case, &fleet(nodes));
        let output = promtool.args(["test", "rules"]).arg(&case).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        promtool = tool("promtool", "prometheus").unwrap();
    }
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn every_alert_fires_under_a_fault_of_a_day_and_is_tried_with_one_that_flaps() {
    let [_, day, flap] = TESTS.map(read);
    for rule in rules(RULES[1]) {
        let name = rule["alert"].as_str().unwrap();
        let fires = format!("alertname: {name}\n        exp_alerts:\n          - exp_labels");
        assert!(day.contains(&fires), "no test in which {name} fires");
        assert!(day.contains(&format!("- name: {name}, a fault of a day\n")), "{name}");
        assert!(flap.contains(&format!("- name: {name}, a fault that flaps\n")), "{name}");
    }
}

#[test]
fn every_metric_of_rules_and_dashboard_is_in_the_reference() {
    let known: BTreeSet<String> = reference().into_iter().map(|(name, ..)| name).collect();
    let queries: Vec<String> = rule_queries().into_iter().chain(dashboard_queries()).collect();
    assert!(queries.len() > 40, "{}", queries.len());
    for query in &queries {
        for series in metrics_in(query).0 {
            assert!(known.contains(&base(&series, &known)), "{series} is not in docs/metrics.md: {query}");
        }
    }
}

#[test]
fn every_recorded_series_that_is_read_is_recorded() {
    let recorded: BTreeSet<String> = [RULES[0], RULES[2]]
        .into_iter()
        .flat_map(rules)
        .collect::<Vec<_>>()
        .iter()
        .map(|rule| rule["record"].as_str().unwrap().to_owned())
        .collect();
    for query in rule_queries().into_iter().chain(dashboard_queries()) {
        for series in metrics_in(&query).1 {
            assert!(recorded.contains(&series), "{series} is not recorded: {query}");
        }
    }
}

#[test]
fn every_metric_of_the_reference_is_used_or_describes_the_process() {
    let used: String = rule_queries().into_iter().chain(dashboard_queries()).collect::<Vec<_>>().join("\n");
    for (name, kind, labels) in reference() {
        assert!(["counter", "gauge", "histogram"].contains(&kind.as_str()), "{name}: {kind}");
        assert!(!labels.contains(""), "{name}: no labels given");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}: counters end in _total");
        assert!(
            name.starts_with("process_") || used.contains(&name),
            "{name} is on no dashboard and in no rule"
        );
    }
}

#[test]
fn every_alert_leads_to_a_section_of_the_runbook_and_every_section_to_an_alert() {
    let sections: BTreeSet<String> = read("docs/runbook.md")
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(String::from)
        .collect();
    let mut alerts = BTreeSet::new();
    for rule in rules(RULES[1]) {
        let name = rule["alert"].as_str().unwrap().to_owned();
        let link = rule["annotations"]["runbook_url"].as_str().unwrap().to_owned();
        assert!(link.ends_with(&format!("/runbook.md#{}", name.to_lowercase())), "{link}");
        assert!(
            ["critical", "warning", "info"].contains(&rule["labels"]["severity"].as_str().unwrap()),
            "{name}"
        );
        alerts.insert(name);
    }
    assert_eq!(alerts, sections);
}

#[test]
fn panels_of_the_dashboard_do_not_overlap_and_have_their_own_numbers() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana/crimux.json")).unwrap();
    let mut cells = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(numbers.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
        let side = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(side("x") + side("w") <= 24, "{}", panel["title"]);
        for x in side("x")..side("x") + side("w") {
            for y in side("y")..side("y") + side("h") {
                assert!(cells.insert((x, y)), "{} lies on another panel", panel["title"]);
            }
        }
    }
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    let mut files = files_below(&repository("docs"), &[".md"]);
    files.extend(["README.md", "ARCHITECTURE.md"].map(repository));
    for file in files {
        let markdown = std::fs::read_to_string(&file).unwrap();
        for target in markdown.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if !target.starts_with("http") {
                assert!(resolves(&file, target), "{}: {target}", file.display());
            }
        }
    }
}

/// Whether a link of `file`, with or without a section, has a target.
fn resolves(file: &Path, target: &str) -> bool {
    let (path, section) = target.split_once('#').unwrap_or((target, ""));
    let path = if path.is_empty() { file.to_path_buf() } else { file.parent().unwrap().join(path) };
    let Ok(text) = std::fs::read_to_string(&path) else {
        return section.is_empty() && path.exists();
    };
    let slug = |heading: &str| -> String {
        let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        heading.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
    };
    section.is_empty() || text.lines().any(|line| line.starts_with('#') && slug(line) == section)
}
