//! The pods' network of an instance: plugins, configuration list, bridge.

use std::process::Command;

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use orlop_kernel::network::Links;

use crate::cri::beside;
use crate::layout::{Instance, Layout, write_atomically};

/// Our configuration list; users override it by one that comes before it.
pub const CONF_FILE: &str = "10-orlop.conflist";

/// Installs the plugins where they are missing or old ones of ours, and the configuration list where there is none at all.
pub fn prepare(layout: &Layout, instance: &Instance) -> Result<()> {
    run_plugins("install", layout)?;
    std::fs::create_dir_all(&layout.cni_conf).with_context(|| format!("make {}", layout.cni_conf.display()))?;
    let own = layout.cni_conf.join(CONF_FILE);
    let foreign = std::fs::read_dir(&layout.cni_conf)?
        .flatten()
        .filter(|entry| entry.path() != own)
        .any(|entry| entry.path().extension().is_some_and(|kind| kind == "conflist" || kind == "conf"));
    if foreign {
        return Ok(());
    }
    write_atomically(&own, &serde_json::to_vec_pretty(&instance.conflist(layout))?)
}

/// Takes plugins, empty tables and configuration list away again; those of others stay.
pub fn clear(layout: &Layout) -> Result<()> {
    run_plugins("uninstall", layout)?;
    match std::fs::remove_file(layout.cni_conf.join(CONF_FILE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("remove the configuration list")
        }
        _ => Ok(()),
    }
}

fn run_plugins(what: &str, layout: &Layout) -> Result<()> {
    let plugins = beside("orlop-cni-plugins")?;
    let output = Command::new(&plugins)
        .arg(what)
        .arg(&layout.cni_bin)
        .output()
        .with_context(|| format!("run {}; install it beside orlop", plugins.display()))?;
    if !output.status.success() {
        bail!("{}: {}", plugins.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Makes the pods' bridge before the first pod does, with the address that the API is reached by.
pub fn make_bridge(instance: &Instance) -> Result<()> {
    let links = Links::open()?;
    match links.add_bridge(&instance.bridge, 0, false) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    let bridge = links.find(&instance.bridge)?.context("the bridge is gone again")?;
    let address = IpNetwork::new(instance.gateway().into(), instance.subnet.prefix())?;
    links.add_address(bridge.index, address)?;
    links.set_up(bridge.index, true)?;
    Ok(())
}

/// Removes the bridge.
pub fn remove_bridge(instance: &Instance) -> Result<()> {
    Ok(Links::open()?.delete(&instance.bridge)?)
}
