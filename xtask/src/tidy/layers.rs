//! Which crate may depend on which. The arrows of docs/ARCHITECTURE.md, as data.
//!
//! A crate must have exactly the listed dependencies inside the workspace: one more is a layer
//! broken, one less means that the table no longer says how things are.

use super::{Finding, tree::TextFile};
use std::collections::BTreeSet;

struct Layer {
    manifest: &'static str,
    package: &'static str,
    /// In the product.
    depends_on: &'static [&'static str],
    /// In its tests as well; these may point back up, since no product follows them.
    in_tests: &'static [&'static str],
}

const LAYERS: &[Layer] = &[
    Layer {
        manifest: "wire/Cargo.toml",
        package: "portico-wire",
        depends_on: &[],
        in_tests: &[],
    },
    Layer {
        manifest: "gateway/core/Cargo.toml",
        package: "portico-core",
        depends_on: &["portico-wire"],
        in_tests: &["portico-core"],
    },
    Layer {
        manifest: "gateway/tls/Cargo.toml",
        package: "portico-tls",
        depends_on: &["portico-wire"],
        in_tests: &["portico-tls"],
    },
    Layer {
        manifest: "backend-adapters/Cargo.toml",
        package: "portico-backend",
        depends_on: &["portico-wire"],
        in_tests: &["portico-backend"],
    },
    Layer {
        manifest: "client/Cargo.toml",
        package: "portico-client",
        depends_on: &["portico-wire"],
        in_tests: &["portico-client"],
    },
    Layer {
        manifest: "gateway/Cargo.toml",
        package: "portico-gateway",
        depends_on: &[
            "portico-backend",
            "portico-client",
            "portico-core",
            "portico-tls",
            "portico-wire",
        ],
        in_tests: &[
            "portico-backend",
            "portico-client",
            "portico-core",
            "portico-gateway",
        ],
    },
    Layer {
        manifest: "loadgen/Cargo.toml",
        package: "portico-loadgen",
        depends_on: &["portico-client", "portico-wire"],
        in_tests: &["portico-client", "portico-wire"],
    },
    Layer {
        // And gateway/src/store_map.rs, which it compiles in.
        manifest: "sim/Cargo.toml",
        package: "portico-sim",
        depends_on: &[
            "portico-backend",
            "portico-client",
            "portico-core",
            "portico-wire",
        ],
        in_tests: &[],
    },
    Layer {
        manifest: "benches/Cargo.toml",
        package: "portico-benches",
        depends_on: &[],
        in_tests: &[
            "portico-backend",
            "portico-client",
            "portico-core",
            "portico-gateway",
            "portico-wire",
        ],
    },
    Layer {
        manifest: "xtask/Cargo.toml",
        package: "xtask",
        depends_on: &[],
        in_tests: &[],
    },
    Layer {
        manifest: "fuzz/Cargo.toml",
        package: "portico-fuzz",
        depends_on: &["portico-client", "portico-core", "portico-wire"],
        in_tests: &[],
    },
];

pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    let manifests = files
        .iter()
        .filter(|file| file.path.ends_with("/Cargo.toml") && !file.path.starts_with("target/"));
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for file in manifests {
        match LAYERS.iter().find(|layer| layer.manifest == file.path) {
            Some(layer) => {
                seen.insert(layer.manifest);
                findings.extend(check_manifest(layer, &file.text));
            }
            None => findings.push(Finding::new(
                &file.path,
                0,
                "a crate without a row in the table of layers (xtask/src/tidy/layers.rs)",
            )),
        }
    }
    let absent = LAYERS.iter().filter(|layer| !seen.contains(layer.manifest));
    findings.extend(absent.map(|layer| {
        Finding::new(
            layer.manifest,
            0,
            "is in the table of layers, but not in the repository",
        )
    }));
    findings
}

fn check_manifest(layer: &Layer, text: &str) -> Vec<Finding> {
    let file = layer.manifest;
    let manifest: toml::Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Finding::new(file, 0, error.to_string())],
    };
    let package = manifest
        .get("package")
        .and_then(|package| package.get("name"));
    let mut findings = Vec::new();
    if package.and_then(toml::Value::as_str) != Some(layer.package) {
        findings.push(Finding::new(
            file,
            0,
            format!("is not the package {}", layer.package),
        ));
    }
    let expected: BTreeSet<&str> = layer.depends_on.iter().copied().collect();
    let found = edges(&manifest, &["dependencies", "build-dependencies"]);
    for edge in found
        .iter()
        .filter(|edge| !expected.contains(edge.as_str()))
    {
        let message = format!("{} must not depend on {edge}", layer.package);
        findings.push(Finding::new(file, 0, message));
    }
    for edge in expected.iter().filter(|edge| !found.contains(**edge)) {
        let message = format!("no longer depends on {edge}: mend the table of layers");
        findings.push(Finding::new(file, 0, message));
    }
    for edge in edges(&manifest, &["dev-dependencies"]) {
        let allowed = layer.in_tests.iter().chain(layer.depends_on);
        if !allowed.into_iter().any(|allowed| *allowed == edge) {
            let message = format!("the tests of {} must not depend on {edge}", layer.package);
            findings.push(Finding::new(file, 0, message));
        }
    }
    findings
}

/// The packages of this workspace in the given sections, those for one platform only included. A
/// renamed dependency counts under its real name, and what has a path counts as ours whatever it
/// is called.
fn edges(manifest: &toml::Table, sections: &[&str]) -> BTreeSet<String> {
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let per_target = targets.into_iter().flat_map(|targets| targets.values());
    let places = per_target
        .filter_map(toml::Value::as_table)
        .chain([manifest]);
    let mut edges = BTreeSet::new();
    for place in places {
        for section in sections {
            let Some(section) = place.get(*section).and_then(toml::Value::as_table) else {
                continue;
            };
            for (key, value) in section {
                let renamed = value.get("package").and_then(toml::Value::as_str);
                let name = renamed.unwrap_or(key);
                let has_path = value.get("path").is_some();
                if has_path || LAYERS.iter().any(|layer| layer.package == name) {
                    edges.insert(name.to_owned());
                }
            }
        }
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    const CORE: &str = "gateway/core/Cargo.toml";

    /// The findings of one manifest, alone.
    #[track_caller]
    fn messages(path: &str, rest: &str) -> Vec<String> {
        let layer = LAYERS
            .iter()
            .find(|layer| layer.manifest == path)
            .expect(path);
        let text = format!("[package]\nname = \"{}\"\n{rest}", layer.package);
        let findings = check_manifest(layer, &text).into_iter();
        findings.map(|finding| finding.message).collect()
    }

    #[test]
    fn the_listed_edges_pass() {
        let listed = "[dependencies]\nportico-wire.workspace = true\nbytes.workspace = true\n\
                      [dev-dependencies]\nportico-core = { path = \".\" }\n";
        assert_eq!(messages(CORE, listed), [""; 0]);
    }

    #[test]
    fn an_edge_upwards_is_found_in_every_section() {
        for section in [
            "[dependencies]\nportico-wire = {}\nportico-backend.workspace = true\n",
            "[dependencies]\nportico-wire = {}\n[build-dependencies]\nportico-backend = {}\n",
            "[dependencies]\nportico-wire = {}\nb = { package = \"portico-backend\" }\n",
            "[dependencies]\nportico-wire = {}\n\
             [target.'cfg(unix)'.dependencies]\nportico-backend = {}\n",
        ] {
            let found = messages(CORE, section);
            assert_eq!(found, ["portico-core must not depend on portico-backend"]);
        }
    }

    #[test]
    fn an_edge_that_went_away_is_found() {
        let found = messages(CORE, "");
        assert_eq!(
            found,
            ["no longer depends on portico-wire: mend the table of layers"]
        );
    }

    #[test]
    fn tests_have_edges_of_their_own() {
        let found = messages(
            CORE,
            "[dependencies]\nportico-wire = {}\n[dev-dependencies]\nportico-gateway = {}\n",
        );
        assert_eq!(
            found,
            ["the tests of portico-core must not depend on portico-gateway"]
        );
    }

    #[test]
    fn a_path_counts_as_ours_under_any_name() {
        let found = messages(
            CORE,
            "[dependencies]\nportico-wire = {}\nx = { path = \"../x\" }\n",
        );
        assert_eq!(found, ["portico-core must not depend on x"]);
    }

    #[test]
    fn a_manifest_without_a_row_and_a_row_without_a_manifest_are_found() {
        let files = [TextFile::new(
            "new/Cargo.toml",
            "[package]\nname = \"new\"\n",
        )];
        let findings = check(&files);
        assert!(
            findings[0].message.contains("without a row"),
            "{findings:?}"
        );
        assert_eq!(findings.len(), 1 + LAYERS.len());
    }

    #[test]
    fn what_is_not_a_manifest_is_a_finding_not_a_crash() {
        let layer = &LAYERS[0];
        assert_eq!(check_manifest(layer, "[package").len(), 1);
        assert!(
            check_manifest(layer, "")
                .iter()
                .any(|f| f.message.contains("is not the package"))
        );
    }
}
