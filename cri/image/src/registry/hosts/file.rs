//! `hosts.toml`: mirrors in the order of the file, then the server; every complaint names the file and the key.

use std::path::Path;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use reqwest::Url;
use toml::{Table, Value};

use super::super::trust::{NamedFile, Trust, read_bounded};
use super::{Capabilities, ServerSettings};
use crate::registry::auth::secret_header;

/// Largest file read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Most mirrors of a registry.
const MIRRORS_MAX: usize = 32;
/// Most extra headers of a server.
const HEADERS_MAX: usize = 64;

/// Reads `<folder>/hosts.toml`; none if there is no such file, or it is empty.
pub(super) fn read(folder: &Path) -> Result<Option<Vec<ServerSettings>>, String> {
    let path = folder.join("hosts.toml");
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
        Ok(metadata) if metadata.len() == 0 => return Ok(None),
        Ok(_) => {}
    }
    let wrong = |why: String| format!("{}: {why}", path.display());
    let bytes = read_bounded(&path, FILE_BYTES_MAX).map_err(wrong)?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8".into()))?;
    let table: Table =
        text.parse().map_err(|error: toml::de::Error| wrong(error.to_string().trim().replace('\n', " ")))?;
    parse(&path, &table).map(Some)
}

fn parse(path: &Path, table: &Table) -> Result<Vec<ServerSettings>, String> {
    let top = Section { path, name: String::new(), table };
    let mut servers = Vec::new();
    if let Some(hosts) = table.get("host") {
        let hosts = hosts.as_table().ok_or_else(|| top.wrong("host", "it must be tables [host.\"URL\"]"))?;
        if hosts.len() > MIRRORS_MAX {
            return Err(top.wrong("host", &format!("it has {} entries, {MIRRORS_MAX} at most", hosts.len())));
        }
        for (url, host) in hosts {
            let name = format!("host.\"{url}\"");
            let table = host.as_table().ok_or_else(|| top.wrong(&name, "it must be a table"))?;
            let section = Section { path, name, table };
            section.check_keys(&[])?;
            servers.push(section.server(Some(url))?);
        }
    }
    top.check_keys(&["server", "host"])?;
    let server = match table.get("server") {
        None => None,
        Some(Value::String(url)) if url.is_empty() => None,
        Some(Value::String(url)) => Some(url.as_str()),
        Some(_) => return Err(top.wrong("server", "it must be a URL in quotes")),
    };
    servers.push(top.server(server)?);
    Ok(servers)
}

/// One table of the file.
struct Section<'a> {
    path: &'a Path,
    /// Where it is; empty for the top.
    name: String,
    table: &'a Table,
}

impl Section<'_> {
    fn setting(&self, key: &str) -> String {
        let dot = if self.name.is_empty() { "" } else { "." };
        format!("{}: {}{dot}{key}", self.path.display(), self.name)
    }

    fn wrong(&self, key: &str, why: &str) -> String {
        format!("{}: {why}", self.setting(key))
    }

    /// A misspelt key would widen what a mirror may do, unseen.
    fn check_keys(&self, more: &[&str]) -> Result<(), String> {
        const KNOWN: [&str; 8] =
            ["capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", "proxy"];
        match self.table.keys().find(|key| !KNOWN.contains(&key.as_str()) && !more.contains(&key.as_str())) {
            Some(key) => {
                let known: Vec<&str> = more.iter().chain(&KNOWN).copied().collect();
                Err(self.wrong(key, &format!("there is no such key; known are {}", known.join(", "))))
            }
            None => Ok(()),
        }
    }

    fn server(&self, url: Option<&str>) -> Result<ServerSettings, String> {
        let override_path = self.flag("override_path")?;
        let root = url.map(|url| self.root(url, override_path)).transpose()?;
        let trust = Trust {
            authorities: self.authorities()?,
            identities: self.identities()?,
            skip_verify: self.flag("skip_verify")?,
        };
        // Without a server of its own, the top of the file says nothing of what the registry itself can do.
        let capabilities = if root.is_some() { self.capabilities()? } else { Capabilities::ALL };
        Ok(ServerSettings {
            root,
            capabilities,
            trust,
            headers: self.headers()?,
            dial_timeout: self.dial_timeout()?,
            proxy: self.proxy()?,
        })
    }

    fn root(&self, text: &str, override_path: bool) -> Result<Url, String> {
        let key = if self.name.is_empty() { "server" } else { "" };
        let name = self.setting(key).trim_end_matches('.').to_owned();
        let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let mut url = Url::parse(&full).map_err(|error| format!("{name}: {text:?} is no URL: {error}"))?;
        let plain = url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
            && url.has_host();
        if !matches!(url.scheme(), "http" | "https") || !plain {
            return Err(format!("{name}: it must be http(s)://host[:port][/path] and nothing more"));
        }
        let path = url.path().trim_end_matches('/').to_owned();
        let path = if override_path || path.ends_with("/v2") { path } else { format!("{path}/v2") };
        url.set_path(&path);
        Ok(url)
    }

    fn flag(&self, key: &str) -> Result<bool, String> {
        match self.table.get(key) {
            None => Ok(false),
            Some(Value::Boolean(value)) => Ok(*value),
            Some(_) => Err(self.wrong(key, "it must be true or false")),
        }
    }

    fn capabilities(&self) -> Result<Capabilities, String> {
        let Some(value) = self.table.get("capabilities") else { return Ok(Capabilities::ALL) };
        let words = self.strings("capabilities", value)?;
        if words.is_empty() {
            return Ok(Capabilities::ALL);
        }
        let mut found = Capabilities { pull: false, resolve: false };
        for word in words {
            match word.to_ascii_lowercase().as_str() {
                "pull" => found.pull = true,
                "resolve" => found.resolve = true,
                // Nothing is pushed from here.
                "push" => {}
                _ => return Err(self.wrong("capabilities", &format!("{word:?} is none of pull, resolve, push"))),
            }
        }
        Ok(found)
    }

    /// A string, or a list of strings.
    fn strings(&self, key: &str, value: &Value) -> Result<Vec<String>, String> {
        let wrong = || self.wrong(key, "it must be a string or a list of strings");
        match value {
            Value::String(text) => Ok(vec![text.clone()]),
            Value::Array(list) => {
                list.iter().map(|entry| entry.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
            }
            _ => Err(wrong()),
        }
    }

    /// A file named in this one: relative to its folder.
    fn file(&self, key: &str, text: &str) -> NamedFile {
        let path = self.path.parent().unwrap_or(Path::new("/")).join(text);
        NamedFile { setting: self.setting(key), path }
    }

    fn authorities(&self) -> Result<Vec<NamedFile>, String> {
        let Some(value) = self.table.get("ca") else { return Ok(Vec::new()) };
        Ok(self.strings("ca", value)?.iter().map(|text| self.file("ca", text)).collect())
    }

    fn identities(&self) -> Result<Vec<(NamedFile, Option<NamedFile>)>, String> {
        let Some(value) = self.table.get("client") else { return Ok(Vec::new()) };
        let wrong =
            || self.wrong("client", "it must be a file, a list of files, or a list of pairs [\"CERT\", \"KEY\"]");
        let entries = match value {
            Value::String(_) => std::slice::from_ref(value),
            Value::Array(list) => list,
            _ => return Err(wrong()),
        };
        let mut found = Vec::new();
        for entry in entries {
            match entry {
                Value::String(text) => found.push((self.file("client", text), None)),
                Value::Array(pair) => match pair.as_slice() {
                    [Value::String(certificate), Value::String(key)] => {
                        let key = (!key.is_empty()).then(|| self.file("client", key));
                        found.push((self.file("client", certificate), key));
                    }
                    _ => return Err(wrong()),
                },
                _ => return Err(wrong()),
            }
        }
        Ok(found)
    }

    fn headers(&self) -> Result<HeaderMap, String> {
        let Some(value) = self.table.get("header") else { return Ok(HeaderMap::new()) };
        let table = value.as_table().ok_or_else(|| self.wrong("header", "it must be a table of names and values"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in table {
            let key = format!("header.{name}");
            let parsed: HeaderName = name.parse().map_err(|_| self.wrong(&key, "it is no name of a header"))?;
            for text in self.strings(&key, value)? {
                let value = secret_header(&text)
                    .ok_or_else(|| self.wrong(&key, "it has characters that no header may have"))?;
                headers.append(parsed.clone(), value);
            }
        }
        if headers.len() > HEADERS_MAX {
            return Err(self.wrong("header", &format!("it has {} values, {HEADERS_MAX} at most", headers.len())));
        }
        Ok(headers)
    }

    fn proxy(&self) -> Result<Option<Url>, String> {
        let Some(value) = self.table.get("proxy") else { return Ok(None) };
        let wrong =
            || self.wrong("proxy", "it must be http(s)://host[:port]; other kinds of proxies are not supported");
        let url = Url::parse(value.as_str().ok_or_else(wrong)?).map_err(|_| wrong())?;
        let plain = url.has_host() && url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if plain && matches!(url.scheme(), "http" | "https") { Ok(Some(url)) } else { Err(wrong()) }
    }

    fn dial_timeout(&self) -> Result<Option<Duration>, String> {
        let Some(value) = self.table.get("dial_timeout") else { return Ok(None) };
        let wrong = || self.wrong("dial_timeout", "it must be a time such as \"500ms\", \"5s\" or \"1m30s\"");
        let parsed: jiff::SignedDuration = value.as_str().ok_or_else(wrong)?.parse().map_err(|_| wrong())?;
        let duration = Duration::try_from(parsed).map_err(|_| wrong())?;
        if duration.is_zero() { Err(wrong()) } else { Ok(Some(duration)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<ServerSettings>, String> {
        parse(Path::new("/certs.d/r/hosts.toml"), &text.parse().unwrap())
    }

    #[test]
    fn servers_are_tried_in_the_order_of_the_file() {
        let servers = read_text(
            r#"
            server = "registry.example"
            ca = "ca.pem"
            capabilities = ["pull"]
            [host."https://z.example:5000"]
            capabilities = ["Pull", "push"]
            skip_verify = true
            dial_timeout = "1m30s"
            client = [["/a.cert", "a.key"], "both.pem"]
            [host."https://z.example:5000".header]
            x-one = "1"
            x-two = ["2", "3"]
            [host."http://a.example/root"]
            [host."m.example/api"]
            override_path = true
            ca = ["/1.pem", "2.pem"]
            "#,
        )
        .unwrap();
        let roots: Vec<String> = servers.iter().map(|server| server.root.as_ref().unwrap().to_string()).collect();
        assert_eq!(
            roots,
            [
                "https://z.example:5000/v2",
                "http://a.example/root/v2",
                "https://m.example/api",
                "https://registry.example/v2"
            ]
        );
        let first = &servers[0];
        assert_eq!(first.capabilities, Capabilities { pull: true, resolve: false });
        assert_eq!(first.dial_timeout, Some(Duration::from_secs(90)));
        assert_eq!((first.headers.len(), first.headers["x-one"].as_bytes()), (3, &b"1"[..]));
        let identity = &first.trust.identities[0];
        assert_eq!(identity.0.path, Path::new("/a.cert"));
        assert_eq!(identity.1.as_ref().unwrap().path, Path::new("/certs.d/r/a.key"));
        assert!(first.trust.skip_verify && first.trust.identities[1].1.is_none());
        let authorities: Vec<&Path> = servers[2].trust.authorities.iter().map(|file| file.path.as_path()).collect();
        assert_eq!(authorities, [Path::new("/1.pem"), Path::new("/certs.d/r/2.pem")]);
        assert_eq!(servers[3].capabilities, Capabilities { pull: true, resolve: false });
    }

    #[test]
    fn without_a_server_the_registry_itself_is_last() {
        let servers = read_text("skip_verify = true\n[host.\"https://m.example\"]").unwrap();
        assert_eq!(servers.len(), 2);
        assert!(servers[1].root.is_none() && servers[1].trust.skip_verify && !servers[0].trust.skip_verify);
    }

    #[test]
    fn complaints_name_the_file_and_the_key() {
        let table = [
            ("server = 1", "server: it must be"),
            ("server = \"http://\"", "server: \"http://\" is no URL"),
            ("server = \"https://me:secret@a.example\"", "server: "),
            ("sever = \"https://a.example\"", "sever: there is no such key"),
            ("host = 1", "host: it must be tables"),
            ("host.\"https://a\" = 1", "host.\"https://a\": it must be a table"),
            ("[host.\"ftp://a\"]", "host.\"ftp://a\": "),
            ("[host.\"https://a?x=y\"]", "host.\"https://a?x=y\": "),
            ("[host.\"https://a\"]\ncapabilities = [\"fly\"]", "host.\"https://a\".capabilities: \"fly\" is none of"),
            ("[host.\"https://a\"]\nserver = \"b\"", "host.\"https://a\".server: there is no such key"),
            ("ca = 1", "ca: it must be a string or a list"),
            ("ca = [1]", "ca: it must be"),
            ("client = [[\"a\"]]", "client: it must be a file"),
            ("skip_verify = \"yes\"", "skip_verify: it must be true or false"),
            ("override_path = 0", "override_path: it must be"),
            ("dial_timeout = 5", "dial_timeout: it must be a time"),
            ("dial_timeout = \"-5s\"", "dial_timeout: "),
            ("dial_timeout = \"0s\"", "dial_timeout: "),
            ("proxy = 1", "proxy: it must be http(s)://"),
            ("proxy = \"socks5://p:1\"", "proxy: it must be http(s)://"),
            ("proxy = \"http://p:1/path\"", "proxy: it must be http(s)://"),
            ("header = 1", "header: it must be a table"),
            ("[header]\n\"a b\" = \"x\"", "header.a b: it is no name"),
            ("[header]\na = \"x\\ny\"", "header.a: it has characters"),
        ];
        for (text, part) in table {
            let error = read_text(text).unwrap_err();
            assert!(error.starts_with("/certs.d/r/hosts.toml: ") && error.contains(part), "{text}: {error}");
        }
    }
}
