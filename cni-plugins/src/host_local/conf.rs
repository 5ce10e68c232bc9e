//! The configuration of `host-local`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::Result;
use crate::host_local::range::{Range, RangeConf, RangeSet};
use crate::kit::{Call, CniError, Route, wrong_field};

/// Where addresses are kept when the configuration doesn't say.
const DATA_DIR: &str = "/var/lib/cni/networks";

/// The configuration, checked.
#[derive(Clone, Debug)]
pub(crate) struct HostLocalConf {
    pub(crate) ranges: Vec<RangeSet>,
    pub(crate) routes: Vec<Route>,
    pub(crate) data_dir: PathBuf,
    pub(crate) resolv_conf: Option<PathBuf>,
    /// Addresses that the runtime asks for.
    pub(crate) asked: Vec<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct IpamConf {
    ranges: Vec<Vec<RangeConf>>,
    routes: Vec<Route>,
    #[serde(rename = "dataDir")]
    _data_dir: String,
    resolv_conf: Option<PathBuf>,
    #[serde(flatten)]
    single: RangeConf,
}

impl HostLocalConf {
    /// Reads and checks it.
    pub(crate) fn read(call: &Call) -> Result<HostLocalConf> {
        let ipam = &call.config["ipam"];
        if !ipam.is_object() {
            return Err(CniError::field("ipam", "is missing"));
        }
        let conf: IpamConf = wrong_field::read("ipam", ipam)?;
        let mut sets = Vec::new();
        let runtime = &call.config["runtimeConfig"]["ipRanges"];
        if !runtime.is_null() {
            let given: Vec<Vec<RangeConf>> = wrong_field::read("runtimeConfig.ipRanges", runtime)?;
            sets.extend(given);
        }
        if conf.single.subnet.is_some() {
            sets.push(vec![conf.single]);
        }
        sets.extend(conf.ranges);
        if sets.is_empty() {
            return Err(CniError::field("ipam.ranges", "no IP ranges specified"));
        }
        let mut ranges: Vec<RangeSet> = Vec::new();
        for (index, set) in sets.iter().enumerate() {
            let field = format!("ipam.ranges[{index}]");
            let set: Vec<Range> = set
                .iter()
                .map(|range| Range::new(range).map_err(|text| CniError::field(&field, text)))
                .collect::<Result<_>>()?;
            let set = RangeSet::new(set).map_err(|text| CniError::field(&field, text))?;
            if let Some(other) = ranges.iter().find(|other| other.overlaps(&set)) {
                return Err(CniError::field(&field, format!("range set {set} overlaps with {other}")));
            }
            ranges.push(set);
        }
        let resolv_conf = conf.resolv_conf.filter(|path| !path.as_os_str().is_empty());
        Ok(HostLocalConf { ranges, routes: conf.routes, data_dir: data_dir(call), resolv_conf, asked: asked(call)? })
    }
}

/// The folder of all networks.
pub(crate) fn data_dir(call: &Call) -> PathBuf {
    let folder = call.config["ipam"]["dataDir"].as_str().filter(|folder| !folder.is_empty());
    folder.unwrap_or(DATA_DIR).into()
}

/// Addresses that are asked for: by the runtime, by the arguments of the network, by `CNI_ARGS`.
fn asked(call: &Call) -> Result<Vec<IpAddr>> {
    let mut asked = Vec::new();
    for (field, list) in [
        ("runtimeConfig.ips", &call.config["runtimeConfig"]["ips"]),
        ("args.cni.ips", &call.config["args"]["cni"]["ips"]),
    ] {
        for entry in list.as_array().into_iter().flatten() {
            asked.push(parse(field, entry.as_str().unwrap_or_default())?);
        }
    }
    for (_, value) in call.args.iter().filter(|(key, _)| key == "IP") {
        asked.push(parse("CNI_ARGS IP", value)?);
    }
    Ok(asked)
}

/// An address, with or without a prefix.
fn parse(field: &str, text: &str) -> Result<IpAddr> {
    let bare = text.split('/').next().unwrap_or_default();
    bare.parse().map_err(|_| CniError::field(field, format!("{text:?} is no address")))
}

/// The DNS settings of a `resolv.conf`.
pub(crate) fn read_resolv_conf(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| CniError::field("ipam.resolvConf", format!("{}: {error}", path.display())))?;
    let mut dns: Map<String, Value> = Map::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), values) = (words.next(), words.collect::<Vec<_>>()) else { continue };
        let name = match key {
            "nameserver" => "nameservers",
            "search" => "search",
            "options" => "options",
            "domain" => {
                dns.insert("domain".into(), json!(values.first()));
                continue;
            }
            _ => continue,
        };
        let list = dns.entry(name).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.extend(values.iter().map(|value| json!(value)));
        }
    }
    Ok(dns.into())
}
