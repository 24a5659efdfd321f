//! Every setting as a flag.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches};

use super::keys::{Draft, Field, KEYS, Key, Section};
use super::{ConfigArgs, FLAGS, default_name, show};
use crate::node::settings::Settings;

impl clap::Args for ConfigArgs {
    fn augment_args(mut command: clap::Command) -> clap::Command {
        let file = Arg::new("config").long("config").value_name("FILE");
        let file = file.value_parser(clap::value_parser!(PathBuf));
        command = command.arg(file.help("TOML file with [cluster] and [node]; flags win"));
        for (key, flag) in KEYS.iter().zip(FLAGS.iter()) {
            command = command.arg(flag_argument(key, flag));
        }
        command
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

fn flag_argument(key: &'static Key, flag: &'static str) -> Arg {
    let (heading, value_name) = match (key.section, &key.field) {
        (Section::Cluster, _) => ("Cluster (the same on all nodes)", value_name(key)),
        (Section::Node, _) => ("Node", value_name(key)),
    };
    let defaults = Settings::defaults(PathBuf::new(), default_name());
    let ack = defaults.cluster.ack.to_string();
    let draft = Draft { settings: defaults, ack, replicas: None, tiny: false };
    let help = match show(key, &draft) {
        Some(value) if !key.help.contains("[default") => format!("{} [{value}]", key.help),
        _ => key.help.to_owned(),
    };
    let argument = Arg::new(key.name)
        .long(flag)
        .help_heading(heading)
        .help(help)
        .value_name(value_name)
        .action(ArgAction::Set);
    match key.field {
        Field::Switch { .. } => {
            argument.num_args(0..=1).require_equals(true).default_missing_value("true")
        }
        _ => argument,
    }
}

fn value_name(key: &Key) -> &'static str {
    match &key.field {
        Field::Number(number) => number.unit.name().map_or("N", |name| match name {
            "bytes" => "BYTES",
            _ => "MS",
        }),
        Field::Text { .. } if key.name.contains("listen") || key.name == "replica_of" => {
            "HOST:PORT"
        }
        Field::Text { .. } if key.name == "data_dir" => "DIR",
        Field::Text { .. } => "TEXT",
        Field::Switch { .. } => "BOOL",
    }
}

impl clap::FromArgMatches for ConfigArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let file = matches.get_one::<PathBuf>("config").cloned();
        let flags = KEYS.iter().enumerate().filter_map(|(at, key)| {
            matches.get_one::<String>(key.name).map(|text| (at, text.clone()))
        });
        Ok(ConfigArgs { file, flags: flags.collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
