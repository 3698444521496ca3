//! `DbManager`: how a program in Rust reads the replicator's log and current rows, and writes changes.
//!
//! It reads `duckdb_rust_config.toml`, the service's own profile. The service alone opens the DuckDB file; queries and
//! syncs go to its HTTP interface, which it names in a note beside the file, and changes go to Redis, never to DuckDB.

use std::{env, fmt, fs, path::Path, path::PathBuf, time::Duration};

use serde_json::{json, Map, Value};

const ANSWER_SECONDS_BEYOND: u64 = 30;

#[derive(Debug)]
pub enum Error {
    /// The profile, or what it leads to, cannot be used.
    Config(String),
    /// The service answered with an error: its kind, its message and what to do.
    Refused {
        kind: String,
        message: String,
        hint: String,
    },
    /// The service does not answer, or its answer was cut off.
    Unavailable(String),
    Redis(redis::RedisError),
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::Config(text) | Error::Unavailable(text) => write!(out, "{text}"),
            Error::Refused { kind, message, hint } => write!(out, "{kind}: {message} ({hint})"),
            Error::Redis(error) => write!(out, "Redis: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<redis::RedisError> for Error {
    fn from(error: redis::RedisError) -> Self {
        Error::Redis(error)
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// Rows as objects. Decimals and integers beyond 2^53 are strings, with every digit.
#[derive(Debug)]
pub struct Answer {
    pub rows: Vec<Map<String, Value>>,
    /// At least up to here the log is in what the query saw.
    pub head_offset: u64,
}

/// An entry that XADD returned; `query` can wait until it is in the log.
#[derive(Clone, Debug)]
pub struct Entry {
    pub stream: String,
    pub id: String,
}

pub struct DbManager {
    pub config: toml::Table,
    pub db_path: PathBuf,
    agent: ureq::Agent,
    redis: redis::Client,
}

impl DbManager {
    /// Reads the profile and the variables over it. Connects to nothing yet.
    pub fn new(config_path: &str) -> Result<Self> {
        let path = Path::new(config_path);
        let config: toml::Table =
            read(path)?.parse().map_err(|error| Error::Config(format!("{config_path}: {error}")))?;
        let written = config.get("database").and_then(|section| section.get("path")).and_then(|path| path.as_str());
        let file = env::var("DUCKDB_PATH").unwrap_or(written.unwrap_or("data/replicator.duckdb").to_string());
        let directory = fs::canonicalize(path).map_err(|error| Error::Config(format!("{config_path}: {error}")))?;
        // relative paths start at the directory that holds the configuration directory
        let base = directory.parent().and_then(Path::parent).unwrap_or(Path::new("/")).to_path_buf();
        let url = env::var("REDIS_URL").unwrap_or("redis://127.0.0.1:6379/0".to_string());
        let settings = ureq::Agent::config_builder().http_status_as_error(false).build();
        Ok(DbManager { config, db_path: base.join(file), agent: settings.into(), redis: redis::Client::open(url)? })
    }

    /// One SELECT with values for its `?`.
    pub fn execute_query(&self, sql: &str, parameters: &[Value]) -> Result<Answer> {
        self.query(json!({"sql": sql, "parameters": parameters}))
    }

    /// One SELECT that sees an entry which this program, or another, has written.
    pub fn execute_query_after(&self, entry: &Entry, sql: &str, parameters: &[Value]) -> Result<Answer> {
        let wanted = json!({"stream": entry.stream, "entry_id": entry.id});
        self.query(json!({"sql": sql, "parameters": parameters, "min_entry_id": wanted}))
    }

    fn query(&self, body: Value) -> Result<Answer> {
        let (answer, head_offset) = self.post("/api/v1/query", "read", body, 60)?;
        let rows = answer.get("rows").and_then(Value::as_array).cloned().unwrap_or_default();
        let rows = rows.into_iter().filter_map(|row| if let Value::Object(row) = row { Some(row) } else { None });
        Ok(Answer { rows: rows.collect(), head_offset })
    }

    /// Has everything that is logged delivered now, and waits for it. The report says how far it came.
    pub fn sync_to_clickhouse(&self) -> Result<Value> {
        let ladder = self.config.get("error_handling").and_then(|section| section.get("retry_backoff_sec"));
        let seconds = ladder.and_then(|waits| waits.as_array()).map_or(60.0, |waits| {
            waits.iter().filter_map(|wait| wait.as_float().or(wait.as_integer().map(|whole| whole as f64))).sum()
        });
        let seconds = f64::min(seconds, 600.0);
        Ok(self.post("/api/v1/sync", "admin", json!({"timeout_seconds": seconds}), seconds as u64)?.0)
    }

    /// Writes a row as it is from now on: the service logs it and delivers it. Decimals are best sent as strings.
    pub fn upsert(&self, stream: &str, row: &Value) -> Result<Entry> {
        self.add(stream, "u", row)
    }

    /// Writes that a row is gone. It needs only its key.
    pub fn delete(&self, stream: &str, key: &Value) -> Result<Entry> {
        self.add(stream, "d", key)
    }

    fn add(&self, stream: &str, op: &str, row: &Value) -> Result<Entry> {
        let mut connection = self.redis.get_connection()?;
        let mut command = redis::cmd("XADD");
        let id = command.arg(stream).arg("*").arg(&["op", op, "data"]).arg(row.to_string()).query(&mut connection)?;
        Ok(Entry { stream: stream.to_string(), id })
    }

    fn post(&self, path: &str, role: &str, body: Value, seconds: u64) -> Result<(Value, u64)> {
        let request = self
            .agent
            .post(format!("{}{path}", self.service_url()?))
            .config()
            .timeout_global(Some(Duration::from_secs(seconds + ANSWER_SECONDS_BEYOND)))
            .build()
            .header("Authorization", format!("Bearer {}", self.token(role)?))
            .header("Accept", "application/json")
            .header("Content-Type", "application/json");
        let unavailable = |error: ureq::Error| Error::Unavailable(format!("the service does not answer: {error}"));
        let mut answer = request.send(body.to_string()).map_err(unavailable)?;
        let head = answer.headers().get("x-replicator-head-offset").and_then(|value| value.to_str().ok());
        let head_offset = head.and_then(|text| text.parse().ok()).unwrap_or(0);
        let text = answer.body_mut().with_config().limit(u64::MAX).read_to_string().map_err(unavailable)?;
        let content: Value = serde_json::from_str(&text)
            .map_err(|error| Error::Unavailable(format!("the answer was cut off: {error}")))?;
        if answer.status().is_success() {
            return Ok((content, head_offset));
        }
        let said = |name: &str| content["error"][name].as_str().unwrap_or("").to_string();
        Err(Error::Refused { kind: said("kind"), message: said("message"), hint: said("hint") })
    }

    /// Where the service says that it answers.
    fn service_url(&self) -> Result<String> {
        let note: Value = serde_json::from_str(&read(&self.beside("service.json"))?)
            .map_err(|error| Error::Unavailable(format!("the service's note cannot be read: {error}")))?;
        let url = note["url"].as_str().unwrap_or("").to_string();
        Ok(url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:"))
    }

    fn token(&self, role: &str) -> Result<String> {
        match env::var(format!("REPLICATOR_{}_TOKEN", role.to_uppercase())) {
            Ok(token) => Ok(token),
            Err(_) => Ok(read(&self.beside(&format!("{role}_token")))?.trim().to_string()),
        }
    }

    /// A file that lies beside the database.
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.db_path.clone().into_os_string();
        name.push(format!(".{suffix}"));
        name.into()
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| Error::Config(format!("{}: {error}", path.display())))
}
