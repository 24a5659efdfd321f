//! Takes names of figures apart: `ingest, redis AOF always, 8 clients x 1 rows`.

use std::collections::BTreeSet;

use super::draw::Whose;
use crate::kept::Kept;
use crate::sink::file_name;

/// How names of systems begin.
const SYSTEMS: [(&str, Whose); 4] = [
    ("rowship", Whose::Ours),
    ("redis", Whose::Peer),
    ("postgres", Whose::Peer),
    ("mariadb", Whose::Peer),
];

/// A name, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The system, where the name has one.
    pub system: Option<String>,
    /// Everything else, in order.
    pub others: Vec<String>,
}

/// Takes a name apart.
#[must_use]
pub fn parts(name: &str) -> Parts {
    let (mut system, mut others) = (None, Vec::new());
    for part in name.split(", ").filter(|part| !part.is_empty()) {
        if system.is_none() && SYSTEMS.iter().any(|(prefix, _)| part.starts_with(prefix)) {
            system = Some(part.to_owned());
        } else if let Some(system) = system.as_mut().filter(|_| part.starts_with("WAIT ")) {
            // The one system with a comma in its name: `redis AOF always, WAIT 1`.
            *system = format!("{system}, {part}");
        } else {
            others.push(part.to_owned());
        }
    }
    Parts { system, others }
}

/// Whose a system is.
#[must_use]
pub fn whose(system: &str) -> Whose {
    let found = SYSTEMS.iter().find(|(prefix, _)| system.starts_with(prefix));
    found.map_or(Whose::Ours, |(_, whose)| *whose)
}

/// The name that became this part of a file's name: that of a figure, if one fits.
#[must_use]
pub fn of_file(figures: &[Kept], scenario: &str, file: &str) -> String {
    // Nothing but the name of what is in every distribution.
    let file = file.strip_suffix("-latency").unwrap_or(file);
    for figure in figures.iter().filter(|figure| figure.scenario == scenario) {
        let (work, metric) = figure.work_and_metric();
        let stage = metric.rsplit_once(" p").map_or(metric, |(stage, _)| stage);
        if file_name(work) == file {
            return work.to_owned();
        }
        // By stage, so that a plot compares works at one stage.
        let with_stage = [format!("{work} {stage}"), format!("{work}, {stage}")];
        if with_stage.iter().any(|name| file_name(name) == file) {
            return format!("{stage}, {work}");
        }
    }
    file.replace("--", ", ").replace('-', " ")
}

/// What a plot shows, and what one of its curves is called.
///
/// Where a scenario has several systems, a plot compares them at one shape of work; where it has
/// one, a plot compares the last parts of the names.
#[must_use]
pub fn plot_and_curve(parts: &Parts, systems: usize) -> (String, String) {
    let others = &parts.others;
    match &parts.system {
        Some(system) if systems > 1 => (others.join(", "), system.clone()),
        system => match others.as_slice() {
            [] => (String::new(), system.clone().unwrap_or_default()),
            [one] => (String::new(), one.clone()),
            [first, rest @ ..] => (first.clone(), rest.join(", ")),
        },
    }
}

/// Different systems in some names.
#[must_use]
pub fn systems<'a>(all: impl Iterator<Item = &'a Parts>) -> usize {
    all.filter_map(|parts| parts.system.as_ref()).collect::<BTreeSet<_>>().len()
}

/// The number at the start of a name, so that `5000 rows/s` comes before `20000 rows/s`.
#[must_use]
pub fn leading_number(name: &str) -> Option<u64> {
    name.split(' ').next()?.parse().ok()
}

/// The name without the part that counts replicas, and that count.
#[must_use]
pub fn replicas(figure: &Kept) -> Option<(Vec<String>, u64)> {
    let (work, _) = figure.work_and_metric();
    let is_count = |part: &&str| part.ends_with(" replica") || part.ends_with(" replicas");
    let named = work.split(", ").find(is_count).and_then(|part| part.split(' ').next());
    let count = named.and_then(|text| text.parse().ok()).or_else(|| figure.count("replicas"))?;
    let rest = work.split(", ").filter(|part| !is_count(part)).map(str::to_owned).collect();
    Some((rest, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_at_most_one_system() {
        let parts = parts("ingest, redis AOF always, 8 clients x 1 rows");
        assert_eq!(parts.system.as_deref(), Some("redis AOF always"));
        assert_eq!(parts.others, ["ingest", "8 clients x 1 rows"]);
        let of = |systems| plot_and_curve(&parts, systems);
        assert_eq!(of(2), ("ingest, 8 clients x 1 rows".into(), "redis AOF always".into()));
        assert_eq!(of(1), ("ingest".into(), "8 clients x 1 rows".into()));
        let parts = super::parts("redis AOF always, WAIT 1, 8 clients");
        assert_eq!(parts.system.as_deref(), Some("redis AOF always, WAIT 1"));
        assert_eq!(parts.others, ["8 clients"]);
    }

    #[test]
    fn names_of_files_without_a_figure_can_still_be_read() {
        assert_eq!(of_file(&[], "s", "rowship-async--8-clients"), "rowship async, 8 clients");
    }
}
