#include "flow/measurements.h"

#include <fcntl.h>
#include <pwd.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cassert>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string_view>
#include <system_error>
#include <thread>

#include "base/error.h"

namespace mt {
namespace {

static_assert(std::endian::native == std::endian::little, "vectors are stored as little-endian");

constexpr int kApplicationId = 0x6d746f6d;  // "mtom", what `file` and other programs see
constexpr int kSchemaVersion = 1;
constexpr int kBusySeconds = 60;

// The tables are an interface: users read them with any SQL tool. `value` is NULL for NaN, which
// SQLite does not store.
constexpr const char* kSchema = R"sql(
CREATE TABLE run(
  id INTEGER PRIMARY KEY,
  model_sha256 TEXT NOT NULL,
  corpus_sha256 TEXT NOT NULL,
  settings TEXT NOT NULL,
  UNIQUE(model_sha256, corpus_sha256, settings));
CREATE TABLE measurement(
  run INTEGER NOT NULL REFERENCES run(id),
  place TEXT NOT NULL,
  metric TEXT NOT NULL,
  setting TEXT NOT NULL,
  value REAL,
  PRIMARY KEY(run, metric, place, setting)) WITHOUT ROWID;
CREATE TABLE vector(
  run INTEGER NOT NULL REFERENCES run(id),
  place TEXT NOT NULL,
  metric TEXT NOT NULL,
  data BLOB NOT NULL, -- f32, little-endian
  PRIMARY KEY(run, metric, place));
CREATE TABLE text(
  run INTEGER NOT NULL REFERENCES run(id),
  place TEXT NOT NULL,
  metric TEXT NOT NULL,
  text TEXT NOT NULL,
  PRIMARY KEY(run, metric, place));
)sql";

[[noreturn]] void fail(sqlite3* db, int code, const std::string& path) {
  std::string said = db ? sqlite3_errmsg(db) : sqlite3_errstr(code);
  int why = db ? sqlite3_system_errno(db) : 0;
  switch (code & 0xff) {
    case SQLITE_NOTADB:
      throw_error(
          "{}: expected a database of measurements (SQLite), found another kind of file; name "
          "another with --db",
          path);
    case SQLITE_CORRUPT:
    case SQLITE_ERROR:     // a table or column that is not there
    case SQLITE_MISMATCH:  // a value of another type where ours should be
      throw_error(
          "{}: damaged, or no database of measurements ({}); delete it to measure anew, or name "
          "another file with --db",
          path, said);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      throw_error(
          "{}: another process has kept it locked for {} seconds; wait until it is done, or name "
          "another file with --db",
          path, kBusySeconds);
    case SQLITE_FULL:
      throw_error("{}: the disk is full ({}); free space, or name a file elsewhere with --db", path,
                  said);
    case SQLITE_NOMEM:
      throw_error("{}: not enough memory ({})", path, said);
    default:
      throw_error(
          "{}: the database of measurements cannot be read and written ({}{}{}); name another file "
          "with --db",
          path, said, why ? ": " : "", why ? std::strerror(why) : "");
  }
}

// A prepared statement, kept for the life of the connection.
class Statement {
 public:
  Statement() = default;
  Statement(sqlite3* db, const std::string& path, const char* sql) : db_(db), path_(&path) {
    check(sqlite3_prepare_v3(db, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement_, nullptr));
  }
  Statement(Statement&& other) noexcept { *this = std::move(other); }
  Statement& operator=(Statement&& other) noexcept {
    std::swap(db_, other.db_);
    std::swap(path_, other.path_);
    std::swap(statement_, other.statement_);
    return *this;
  }
  ~Statement() { sqlite3_finalize(statement_); }

  void check(int code) const {
    if (code != SQLITE_OK) fail(db_, code, *path_);
  }
  void bind(int i, int64_t v) { check(sqlite3_bind_int64(statement_, i, v)); }
  void bind(int i, double v) { check(sqlite3_bind_double(statement_, i, v)); }
  void bind(int i, std::string_view v) {
    check(sqlite3_bind_text64(statement_, i, v.data() ? v.data() : "", v.size(), SQLITE_STATIC,
                              SQLITE_UTF8));
  }
  void bind(int i, const std::vector<float>& v) {
    check(v.empty() ? sqlite3_bind_zeroblob(statement_, i, 0)
                    : sqlite3_bind_blob64(statement_, i, v.data(), v.size() * sizeof(float),
                                          SQLITE_STATIC));
  }
  template <class... Args>
  Statement& with(const Args&... args) {
    int i = 0;
    (bind(++i, args), ...);
    return *this;
  }
  // True where there is a row.
  bool step() {
    int code = sqlite3_step(statement_);
    if (code == SQLITE_ROW) return true;
    if (code != SQLITE_DONE) {
      // The message goes with the reset: take it first.
      struct Reset {
        sqlite3_stmt* s;
        ~Reset() { sqlite3_reset(s); }
      } reset{statement_};
      fail(db_, code, *path_);
    }
    return false;
  }
  void reset() {
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
  }
  int64_t integer(int column) const { return sqlite3_column_int64(statement_, column); }
  double real(int column) const {
    const int type = sqlite3_column_type(statement_, column);
    if (type != SQLITE_FLOAT && type != SQLITE_INTEGER)  // NULL stands for NaN; else it is damage
      return std::numeric_limits<double>::quiet_NaN();
    return sqlite3_column_double(statement_, column);
  }
  std::string_view text(int column) const {
    auto* p = sqlite3_column_text(statement_, column);
    auto n = static_cast<size_t>(sqlite3_column_bytes(statement_, column));
    return p ? std::string_view(reinterpret_cast<const char*>(p), n) : std::string_view();
  }
  std::string_view blob(int column) const {
    auto* p = sqlite3_column_blob(statement_, column);
    auto n = static_cast<size_t>(sqlite3_column_bytes(statement_, column));
    return p ? std::string_view(static_cast<const char*>(p), n) : std::string_view();
  }

 private:
  sqlite3* db_ = nullptr;
  const std::string* path_ = nullptr;
  sqlite3_stmt* statement_ = nullptr;
};

// Resets on every way out, an exception included, so that no statement holds a read lock.
struct Query {
  Statement& statement;
  Statement* operator->() const { return &statement; }
  ~Query() { statement.reset(); }
};

struct Connection {
  std::string path;
  sqlite3* db = nullptr;
  ~Connection() { sqlite3_close_v2(db); }

  void check(int code) const {
    if (code != SQLITE_OK) fail(db, code, path);
  }
  void execute(const char* sql) const { check(sqlite3_exec(db, sql, nullptr, nullptr, nullptr)); }
  int64_t number(const char* sql) const {
    Statement s(db, path, sql);
    return s.step() ? s.integer(0) : 0;
  }
  std::string word(const char* sql) const {
    Statement s(db, path, sql);
    return s.step() ? std::string(s.text(0)) : std::string();
  }
};

class SqliteMeasurements final : public Measurements {
 public:
  explicit SqliteMeasurements(const std::filesystem::path& db) {
    std::error_code ignored;
    c_.path = db.string();
    if (std::filesystem::is_directory(db, ignored))
      throw_error("{}: expected a database of measurements, found a folder", c_.path);
    // Absolute: SQLite gives names such as ":memory:" a meaning of their own.
    auto absolute = std::filesystem::absolute(db).string();
    c_.check(sqlite3_open_v2(
        absolute.c_str(), &c_.db,
        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX | SQLITE_OPEN_EXRESCODE,
        nullptr));
    c_.check(sqlite3_busy_timeout(c_.db, kBusySeconds * 1000));
    // The file may come from anywhere: no SQL inside its schema is trusted, and pages are checked
    // as they are read.
    c_.check(sqlite3_db_config(c_.db, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr));
    c_.execute("PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; PRAGMA mmap_size=0");
    if (sqlite3_db_readonly(c_.db, "main") == 1)
      throw_error("{}: cannot be written; name another file with --db", c_.path);
    // One transaction: between two questions another process may create it.
    c_.execute("BEGIN");
    const bool ours = is_ours();
    c_.execute("COMMIT");
    if (!ours) create();
    use_wal();
    // Found now rather than after an hour of measuring.
    std::string found = c_.word("PRAGMA quick_check(1)");
    if (found != "ok")
      throw_error(
          "{}: damaged ({}); delete it to measure anew, or name another file with "
          "--db",
          c_.path, found);
    prepare();
  }

  ~SqliteMeasurements() override {
    if (c_.db && !sqlite3_get_autocommit(c_.db))
      sqlite3_exec(c_.db, "ROLLBACK", nullptr, nullptr, nullptr);
  }

  std::filesystem::path path() const override { return c_.path; }

  void select_run(const std::string& model_sha256, const std::string& corpus_sha256,
                  const std::string& settings) override {
    auto find = [&]() -> int64_t {
      Query q{find_run_.with(model_sha256, corpus_sha256, settings)};
      return q->step() ? q->integer(0) : -1;
    };
    run_ = find();
    if (run_ >= 0) return;
    {
      // Another process may have made the same run meanwhile: then this adds nothing.
      Query q{add_run_.with(model_sha256, corpus_sha256, settings)};
      q->step();
    }
    run_ = find();
    if (run_ < 0)
      throw_error("{}: the table of runs is damaged; delete the file to measure anew", c_.path);
  }

  std::optional<double> value(const std::string& place, const std::string& metric,
                              const std::string& setting) override {
    Query q{value_.with(run(), place, metric, setting)};
    if (!q->step()) return std::nullopt;
    return q->real(0);
  }

  void put(const std::string& place, const std::string& metric, const std::string& setting,
           double value) override {
    Query q{put_value_.with(run(), place, metric, setting, value)};
    q->step();
  }

  std::optional<std::vector<float>> vector(const std::string& place,
                                           const std::string& metric) override {
    Query q{vector_.with(run(), place, metric)};
    if (!q->step()) return std::nullopt;
    std::string_view bytes = q->blob(0);
    if (bytes.size() % sizeof(float) != 0)
      throw_error(
          "{}: vector '{}' of '{}' has {} bytes, not a multiple of 4; delete the file to measure "
          "anew",
          c_.path, metric, place, bytes.size());
    std::vector<float> values(bytes.size() / sizeof(float));
    if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }

  void put(const std::string& place, const std::string& metric,
           const std::vector<float>& values) override {
    Query q{put_vector_.with(run(), place, metric, values)};
    q->step();
  }

  std::optional<std::string> text(const std::string& place, const std::string& metric) override {
    Query q{text_.with(run(), place, metric)};
    if (!q->step()) return std::nullopt;
    return std::string(q->text(0));
  }

  void put_text(const std::string& place, const std::string& metric,
                const std::string& text) override {
    Query q{put_text_.with(run(), place, metric, text)};
    q->step();
  }

  std::vector<Row> rows(const std::string& metric) override {
    std::vector<Row> all;
    Query q{rows_.with(run(), metric)};
    while (q->step())
      all.push_back({std::string(q->text(0)), metric, std::string(q->text(1)), q->real(2)});
    return all;
  }

  void begin() override {
    // What an exception left half-done is dropped, not joined to the next transaction.
    if (!sqlite3_get_autocommit(c_.db)) c_.execute("ROLLBACK");
    // Immediate: the lock is taken (and waited for) here, where waiting is safe.
    Query {
      begin_
      } -> step();
  }
  void commit() override {
    Query {
      commit_
      } -> step();
  }

 private:
  int64_t run() const {
    assert(run_ >= 0 && "select_run comes first");
    return run_;
  }

  // False: empty, to be created. Throws where the file is another program's; nothing has been
  // written to it by then.
  bool is_ours() const {
    int64_t id = c_.number("PRAGMA application_id");
    int64_t version = c_.number("PRAGMA user_version");
    int64_t n_tables = c_.number("SELECT count(*) FROM sqlite_master");
    if (id == 0 && version == 0 && n_tables == 0) return false;
    if (id != kApplicationId)
      throw_error(
          "{}: an SQLite file of another program (application id {}, expected {}); name another "
          "file with --db",
          c_.path, id, kApplicationId);
    if (version != kSchemaVersion)
      throw_error(
          "{}: measurements in schema version {}, this program reads version {}; delete it to "
          "measure anew, or name another file with --db",
          c_.path, version, kSchemaVersion);
    return true;
  }

  void create() const {
    c_.execute("BEGIN IMMEDIATE");
    if (!is_ours()) {  // another process may have been faster
      c_.execute(kSchema);
      c_.execute(fmt::format("PRAGMA application_id={}", kApplicationId).c_str());
      c_.execute(fmt::format("PRAGMA user_version={}", kSchemaVersion).c_str());
    }
    c_.execute("COMMIT");
  }

  // A write-ahead log: a process killed at any moment loses only the transaction it was in, a
  // reader never waits for a writer, and small writes need no fsync each. Where the file system
  // cannot share memory SQLite keeps its rollback journal, which is as safe and slower. The switch
  // needs the file alone and does not wait for it by itself.
  void use_wal() const {
    auto until = std::chrono::steady_clock::now() + std::chrono::seconds(kBusySeconds);
    for (;;) {
      int code = sqlite3_exec(c_.db, "PRAGMA journal_mode=WAL", nullptr, nullptr, nullptr);
      if ((code & 0xff) != SQLITE_BUSY || std::chrono::steady_clock::now() > until) {
        c_.check(code);
        break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    c_.execute("PRAGMA synchronous=NORMAL");
  }

  void prepare() {
    auto make = [&](const char* sql) { return Statement(c_.db, c_.path, sql); };
    find_run_ =
        make("SELECT id FROM run WHERE model_sha256=?1 AND corpus_sha256=?2 AND settings=?3");
    add_run_ = make("INSERT OR IGNORE INTO run(model_sha256,corpus_sha256,settings) VALUES(?,?,?)");
    value_ = make(
        "SELECT value FROM measurement WHERE run=?1 AND place=?2 AND metric=?3 AND setting=?4");
    put_value_ = make(
        "INSERT OR REPLACE INTO measurement(run,place,metric,setting,value) VALUES(?,?,?,?,?)");
    vector_ = make("SELECT data FROM vector WHERE run=?1 AND place=?2 AND metric=?3");
    put_vector_ = make("INSERT OR REPLACE INTO vector(run,place,metric,data) VALUES(?,?,?,?)");
    text_ = make("SELECT text FROM text WHERE run=?1 AND place=?2 AND metric=?3");
    put_text_ = make("INSERT OR REPLACE INTO text(run,place,metric,text) VALUES(?,?,?,?)");
    rows_ = make(
        "SELECT place,setting,value FROM measurement WHERE run=?1 AND metric=?2 "
        "ORDER BY place,setting");
    begin_ = make("BEGIN IMMEDIATE");
    commit_ = make("COMMIT");
  }

  Connection c_;  // before the statements, which end first
  int64_t run_ = -1;
  Statement find_run_, add_run_, value_, put_value_, vector_, put_vector_, text_, put_text_, rows_,
      begin_, commit_;
};

// Tried rather than asked: permissions do not tell of read-only mounts and such.
bool can_create_in(const std::filesystem::path& folder) {
  std::string name = (folder / ".microtome-XXXXXX").string();
  int fd = ::mkostemp(name.data(), O_CLOEXEC);
  if (fd < 0) return false;
  ::close(fd);
  ::unlink(name.c_str());
  return true;
}

bool can_write(const std::filesystem::path& file) {
  return ::access(file.c_str(), W_OK) == 0;
}

std::filesystem::path cache_folder() {
  const char* xdg = std::getenv("XDG_CACHE_HOME");
  if (xdg && *xdg == '/') return std::filesystem::path(xdg) / "microtome";
  const char* home = std::getenv("HOME");
  if (!home || !*home) {
    const passwd* entry = ::getpwuid(::getuid());
    home = entry ? entry->pw_dir : nullptr;
  }
  if (!home || !*home)
    throw Error("no cache folder: neither XDG_CACHE_HOME nor HOME is set; name a file with --db");
  return std::filesystem::path(home) / ".cache" / "microtome";
}

}  // namespace

std::unique_ptr<Measurements> Measurements::open(const std::filesystem::path& db) {
  // SQLite writes other files beside it, refinement its state.
  constexpr size_t kLongestName = 255 - 40;
  std::error_code none;
  if (std::filesystem::exists(db, none) && !std::filesystem::is_regular_file(db, none))
    throw_error("{}: measurements: expected a file, found a {}; name another with --db",
                db.string(), std::filesystem::is_directory(db, none) ? "folder" : "device or pipe");
  if (db.filename().native().size() > kLongestName)
    throw_error(
        "{}: measurements: a name of {} bytes leaves no room for the files beside it; name a "
        "shorter one with --db",
        db.string(), db.filename().native().size());
  return std::make_unique<SqliteMeasurements>(db);
}

std::filesystem::path Measurements::default_path(const std::filesystem::path& model,
                                                 const std::string& model_sha256) {
  namespace fs = std::filesystem;
  fs::path place = fs::absolute(model).lexically_normal();
  if (!place.has_filename()) place = place.parent_path();  // "folder/"
  fs::path beside = place;
  beside += ".microtome.db";
  std::error_code ignored;
  bool writable =
      can_create_in(place.parent_path()) && (!fs::exists(beside, ignored) || can_write(beside));
  if (writable) return beside;
  fs::path cache = cache_folder();
  std::error_code failure;
  fs::create_directories(cache, failure);
  if (failure)
    throw_error("{}: cannot be created: {}; name a file for the measurements with --db",
                cache.string(), failure.message());
  return cache / (model_sha256 + ".microtome.db");
}

}  // namespace mt
