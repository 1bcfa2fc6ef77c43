//! GStreamer, as its own tools see it: no library of it is linked here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::tool::{self, Answer, ToolError};
use super::{Finding, library};

/// The oldest version that the plugin runs on.
const OLDEST: [u32; 3] = [1, 20, 0];
/// The first version with segmentation metadata of its own.
const ANALYTICS: [u32; 3] = [1, 26, 0];
const PLUGIN_FILE: &str = "libgstconceptseg.so";

/// Variables that decide what is found and used; those that are set are shown.
const VARIABLES: [&str; 14] = [
    "GST_PLUGIN_PATH",
    "GST_PLUGIN_PATH_1_0",
    "GST_PLUGIN_SYSTEM_PATH",
    "GST_PLUGIN_SYSTEM_PATH_1_0",
    "GST_PLUGIN_SCANNER",
    "GST_PLUGIN_LOADING_WHITELIST",
    "GST_REGISTRY",
    "GST_REGISTRY_1_0",
    "GST_REGISTRY_UPDATE",
    "GST_REGISTRY_DISABLE",
    "XDG_DATA_HOME",
    "LD_LIBRARY_PATH",
    "ORT_DYLIB_PATH",
    "CONCEPTSEG_TENSORRT",
];

/// The plugin as `gst-inspect-1.0` tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plugin {
    /// Found and loaded.
    Loaded {
        /// Version and commit.
        version: String,
        /// Where from.
        file: PathBuf,
    },
    /// On the list of those that failed once and are left out.
    Blacklisted {
        /// Where it is; its name alone where that is not known.
        file: PathBuf,
    },
    /// Not in any folder that is searched.
    Missing,
    /// Nobody could be asked, or the answer makes no sense.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// What there is of GStreamer.
#[derive(Debug)]
pub struct GStreamer {
    version: Option<[u32; 3]>,
    inspect: Option<PathBuf>,
    launch: Option<PathBuf>,
    plugin: Plugin,
    analytics: bool,
    variables: Vec<(&'static str, String)>,
}

impl GStreamer {
    /// Asks the tools, each for at most `limit`.
    pub fn look(limit: Duration) -> Self {
        let inspect = tool::find("gst-inspect-1.0");
        let told = inspect
            .as_deref()
            .and_then(|inspect| version(&tool::ask(inspect, &["--version"], limit).ok()?.text));
        let plugin = match inspect.as_deref() {
            Some(inspect) => plugin(inspect, limit)
                .unwrap_or_else(|error| Plugin::Unknown { reason: error.to_string() }),
            None => Plugin::Unknown { reason: "gst-inspect-1.0 is not in PATH".to_owned() },
        };
        let variables = VARIABLES.iter().filter_map(|name| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
            Some((*name, value.to_string_lossy().into_owned()))
        });
        Self {
            version: told.or_else(library::gstreamer_version),
            inspect,
            launch: tool::find("gst-launch-1.0"),
            plugin,
            analytics: library::is_there("libgstanalytics-1.0.so.0"),
            variables: variables.collect(),
        }
    }

    pub fn as_json(&self) -> Value {
        let plugin = match &self.plugin {
            Plugin::Loaded { version, file } => {
                json!({"state": "loaded", "version": version, "file": file})
            }
            Plugin::Blacklisted { file } => json!({"state": "blacklisted", "file": file}),
            Plugin::Missing => json!({"state": "missing"}),
            Plugin::Unknown { reason } => json!({"state": "unknown", "reason": reason}),
        };
        let variables: serde_json::Map<String, Value> =
            self.variables.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({
            "version": self.version.map(dotted),
            "gst-inspect-1.0": self.inspect,
            "gst-launch-1.0": self.launch,
            "plugin": plugin,
            "analytics": self.has_analytics(),
            "environment": variables,
        })
    }

    /// Name and content of each line of the report.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let path = |path: &Option<PathBuf>| {
            path.as_ref().map_or_else(|| "not found".to_owned(), |path| path.display().to_string())
        };
        let plugin = match &self.plugin {
            Plugin::Loaded { version, file } => format!("{version}, from {}", file.display()),
            Plugin::Blacklisted { file } => format!("blacklisted: {}", file.display()),
            Plugin::Missing => "not found".to_owned(),
            Plugin::Unknown { reason } => format!("not known: {reason}"),
        };
        let analytics = if self.has_analytics() {
            "yes, segmentation masks are attached in GStreamer's own metadata too"
        } else {
            "no, which takes GStreamer 1.26 and its analytics library; ConceptSegMeta has everything"
        };
        let mut rows = vec![
            ("version", self.version.map_or_else(|| "not found".to_owned(), dotted)),
            ("gst-inspect-1.0", path(&self.inspect)),
            ("gst-launch-1.0", path(&self.launch)),
            ("plugin", plugin),
            ("analytics", analytics.to_owned()),
        ];
        rows.extend(self.variables.iter().map(|(name, value)| (*name, value.clone())));
        rows
    }

    fn has_analytics(&self) -> bool {
        self.analytics && self.version.is_some_and(|version| version >= ANALYTICS)
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str())
    }

    /// What is wrong for a command of this version.
    pub fn findings(&self, own: &str) -> Vec<Finding> {
        let mut found = Vec::new();
        match self.version {
            None => {
                found.push(Finding::problem("GStreamer was not found.", "run scripts/setup, which installs it"));
                return found;
            }
            Some(version) if version < OLDEST => found.push(Finding::problem(
                format!("GStreamer {} is too old; the plugin needs 1.20.", dotted(version)),
                "use Debian 12, Ubuntu 22.04 or a later system",
            )),
            Some(version) if version >= ANALYTICS && !self.analytics => found.push(Finding::note(
                "GStreamer's analytics library was not found, so results are in ConceptSegMeta only.",
                "install libgstreamer-plugins-bad1.0-0, which holds libgstanalytics-1.0.so.0",
            )),
            Some(_) => {}
        }
        let missing: Vec<_> =
            [("gst-inspect-1.0", &self.inspect), ("gst-launch-1.0", &self.launch)]
                .iter()
                .filter_map(|(name, path)| path.is_none().then_some(*name))
                .collect();
        if !missing.is_empty() {
            found.push(Finding::note(
                format!("Not found in PATH: {}.", missing.join(", ")),
                "run scripts/setup, or install gstreamer1.0-tools",
            ));
        }
        found.extend(self.plugin_finding(own));
        found.extend(self.variable_findings());
        found
    }

    fn plugin_finding(&self, own: &str) -> Option<Finding> {
        match &self.plugin {
            Plugin::Loaded { version, .. } if is_version(version, own) => None,
            Plugin::Loaded { version, file } => Some(Finding::problem(
                format!("The plugin {} has version {version}, this command {own}.", file.display()),
                "install both anew with scripts/install; where that changes nothing, remove the old file, \
                 which is found first",
            )),
            Plugin::Blacklisted { file } => Some(Finding::problem(
                format!(
                    "GStreamer failed to load {} once and has it on its blacklist.",
                    file.display()
                ),
                format!(
                    "see what is missing with: ldd {}; then delete the registry, which is made anew: rm {}",
                    file.display(),
                    self.registry()
                ),
            )),
            Plugin::Missing => Some(Finding::problem(
                "GStreamer does not find the plugin conceptseg.",
                format!(
                    "run scripts/install, or set GST_PLUGIN_PATH to the folder that holds {PLUGIN_FILE}"
                ),
            )),
            // Said already.
            Plugin::Unknown { .. } if self.inspect.is_none() => None,
            Plugin::Unknown { reason } => Some(Finding::problem(
                format!("Whether GStreamer finds the plugin is not known: {reason}."),
                "run gst-inspect-1.0 conceptseg yourself; where it hangs, a plugin hangs while it is loaded, \
                 and GST_DEBUG=GST_PLUGIN_LOADING:5 shows which; give a slow machine more time with --timeout",
            )),
        }
    }

    /// The file in which GStreamer remembers plugins.
    fn registry(&self) -> String {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let chosen = self.variable("GST_REGISTRY_1_0").or_else(|| self.variable("GST_REGISTRY"));
        if let Some(chosen) = chosen {
            return chosen.to_owned();
        }
        let cache = set("XDG_CACHE_HOME").unwrap_or_else(|| "~/.cache".to_owned());
        format!("{cache}/gstreamer-1.0/registry.*.bin")
    }

    fn variable_findings(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let paths = VARIABLES.iter().filter(|name| name.starts_with("GST_PLUGIN_PATH"));
        for (name, value) in paths.filter_map(|name| Some((name, self.variable(name)?))) {
            for folder in std::env::split_paths(value).filter(|folder| !folder.is_dir()) {
                found.push(Finding::note(
                    format!("{name} names {}, which is no folder.", folder.display()),
                    format!("take it out of {name}, or make the folder"),
                ));
            }
        }
        // With the plugin there, these have done no harm.
        if self.plugin != Plugin::Missing {
            return found;
        }
        for (name, harm) in [
            (
                "GST_PLUGIN_SYSTEM_PATH",
                "GStreamer searches there in place of its own folders and the user's",
            ),
            (
                "GST_PLUGIN_SYSTEM_PATH_1_0",
                "GStreamer searches there in place of its own folders and the user's",
            ),
            ("GST_REGISTRY_UPDATE", "with \"no\" GStreamer does not look for new plugins"),
            ("GST_PLUGIN_LOADING_WHITELIST", "GStreamer loads no plugin that is not on that list"),
        ] {
            if let Some(value) = self.variable(name) {
                found.push(Finding::note(
                    format!("{name} is set to {value}: {harm}."),
                    format!("unset {name} and look again"),
                ));
            }
        }
        found
    }
}

fn dotted(version: [u32; 3]) -> String {
    version.map(|part| part.to_string()).join(".")
}

/// The version in the answer to `--version`, whose second line is `GStreamer 1.22.0`.
fn version(text: &str) -> Option<[u32; 3]> {
    let line = text.lines().find_map(|line| line.strip_prefix("GStreamer "))?;
    let mut parts = line.split_whitespace().next()?.split('.').map(str::parse);
    Some([parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?])
}

/// Whether a plugin's version, which ends in a dash and a commit, is this one.
fn is_version(told: &str, own: &str) -> bool {
    told.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// What the tool says of the plugin.
fn plugin(inspect: &Path, limit: Duration) -> Result<Plugin, ToolError> {
    let Answer { success, text } = tool::ask(inspect, &["--plugin", "conceptseg"], limit)?;
    if success {
        let field = |name| {
            text.lines().find_map(|line| Some(line.trim().strip_prefix(name)?.trim().to_owned()))
        };
        return Ok(match (field("Version"), field("Filename")) {
            (Some(version), Some(file)) => Plugin::Loaded { version, file: file.into() },
            _ => Plugin::Unknown {
                reason: format!("{} told neither version nor file", inspect.display()),
            },
        });
    }
    let listed = tool::ask(inspect, &["--print-blacklist"], limit)?.text;
    let listed = listed.lines().any(|line| line.trim().ends_with(PLUGIN_FILE));
    Ok(if listed { Plugin::Blacklisted { file: locate() } } else { Plugin::Missing })
}

/// Where the plugin's file is, of which the list has the name only.
fn locate() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let paths =
        VARIABLES.iter().filter(|name| name.starts_with("GST_PLUGIN_") && name.contains("PATH"));
    let chosen: Vec<PathBuf> = paths
        .filter_map(|name| set(name))
        .flat_map(|value| std::env::split_paths(&value).collect::<Vec<_>>())
        .collect();
    let data = set("XDG_DATA_HOME").map(PathBuf::from);
    let data = data.or_else(|| Some(Path::new(&set("HOME")?).join(".local/share")));
    let own = data.map(|data| data.join("gstreamer-1.0/plugins"));
    let files = chosen.into_iter().chain(own).map(|folder| folder.join(PLUGIN_FILE));
    files.into_iter().find(|file| file.is_file()).unwrap_or_else(|| PLUGIN_FILE.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> GStreamer {
        GStreamer {
            version: Some([1, 22, 0]),
            inspect: Some("/bin/gst-inspect-1.0".into()),
            launch: Some("/bin/gst-launch-1.0".into()),
            plugin: Plugin::Loaded {
                version: "0.1.0-abc".into(),
                file: "/p/libgstconceptseg.so".into(),
            },
            analytics: false,
            variables: Vec::new(),
        }
    }

    #[test]
    fn the_version_is_that_of_the_library() {
        let text = "gst-inspect-1.0 version 1.22.3\nGStreamer 1.22.0\nhttps://example.org\n";
        assert_eq!(version(text), Some([1, 22, 0]));
        assert_eq!(version("GStreamer 1.27.1 (GIT)\n"), Some([1, 27, 1]));
        for text in ["", "GStreamer", "GStreamer one\n", "GStreamer 1.22\n"] {
            assert_eq!(version(text), None, "{text}");
        }
    }

    #[test]
    fn a_commit_makes_no_other_version() {
        assert!(is_version("0.1.0", "0.1.0") && is_version("0.1.0-RELEASE", "0.1.0"));
        assert!(!is_version("0.1.01-abc", "0.1.0") && !is_version("0.2.0-abc", "0.1.0"));
    }

    #[test]
    fn a_whole_installation_gives_no_findings() {
        assert_eq!(whole().findings("0.1.0"), []);
    }

    #[test]
    fn an_older_plugin_an_old_framework_and_none_are_problems() {
        let found = whole().findings("0.2.0");
        assert!(
            found[0].problem && found[0].what.contains("0.1.0-abc, this command 0.2.0"),
            "{found:?}"
        );
        let old = GStreamer { version: Some([1, 18, 4]), ..whole() };
        assert!(old.findings("0.1.0")[0].what.contains("1.18.4 is too old"));
        let none = GStreamer { version: None, inspect: None, launch: None, ..whole() };
        assert_eq!(none.findings("0.1.0").len(), 1);
    }

    #[test]
    fn variables_are_named_where_they_may_be_the_reason() {
        let variables = vec![
            ("GST_PLUGIN_PATH", "/nowhere".to_owned()),
            ("GST_REGISTRY_UPDATE", "no".to_owned()),
        ];
        let loaded = GStreamer { variables: variables.clone(), ..whole() };
        let found = loaded.findings("0.1.0");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(!found[0].problem && found[0].what.contains("/nowhere, which is no folder"));
        let missing = GStreamer { variables, plugin: Plugin::Missing, ..whole() };
        let found = missing.findings("0.1.0");
        assert_eq!(found.iter().map(|f| f.problem).collect::<Vec<_>>(), [true, false, false]);
        assert!(found[2].fix.contains("unset GST_REGISTRY_UPDATE"));
    }

    #[test]
    fn analytics_takes_both_the_library_and_a_version_that_has_the_masks() {
        let with = |version, analytics| GStreamer { version: Some(version), analytics, ..whole() };
        assert!(with([1, 26, 0], true).has_analytics());
        assert!(!with([1, 24, 0], true).has_analytics());
        let found = with([1, 26, 2], false).findings("0.1.0");
        assert!(found[0].fix.contains("libgstanalytics-1.0.so.0") && !found[0].problem);
    }
}
