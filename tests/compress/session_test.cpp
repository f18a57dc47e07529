#include "compress/session.h"

#include <gtest/gtest.h>
#include <sqlite3.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "compress/carry_out.h"
#include "compress/corrections.h"
#include "measure/place_loss.h"
#include "plan/ask.h"
#include "run/tiny.h"
#include "support/folder.h"
#include "support/made_model.h"

namespace mt {
namespace {

using test::MadeModel;

class SessionTest : public testing::Test {
 protected:
  ThreadPool pool{1};
  Runtime rt{select_kernels(), pool};
  test::TemporaryFolder folder;

  // Little text, so that a session takes a fraction of a second.
  SessionSettings small(const std::filesystem::path& model) {
    SessionSettings settings;
    settings.n_ctx = 40;
    settings.n_windows = 6;
    settings.n_proof_windows = 4;
    settings.model = model;
    settings.db = folder.path() / (model.filename().string() + ".db");
    settings.types = default_types();
    settings.n_measured = 6;
    return settings;
  }
  // The file of a result, which has the bytes that its plan says.
  TensorFile written(Session& session, const Result& r) {
    session.write(folder / "out.gguf", r.refined, r.plan, r.proof);
    EXPECT_EQ(int64_t(std::filesystem::file_size(folder / "out.gguf")), r.plan.predicted_bytes);
    return read_gguf(folder / "out.gguf");
  }
  std::filesystem::path tiny(const std::string& name) {
    return std::string(MT_TEST_DATA) + "/" + name + ".gguf";
  }
};

Goal size_goal(int64_t bytes) {
  Goal goal;
  goal.bytes = bytes;
  goal.text = "--size " + std::to_string(bytes);
  return goal;
}

// A prediction may hang on one weight and be wrong by any factor: a large one is not believed.
TEST_F(SessionTest, ALargePredictionIsMeasured) {
  const SessionSettings settings = small(tiny("tiny_llama"));
  std::string doubtful;
  {
    Session session(rt, settings);
    session.problem();
    for (const Candidate& c : session.candidates().all) {
      const bool measured = std::any_of(c.dtypes.begin(), c.dtypes.end(), [&](Dtype d) {
        return session.db().value(c.key, "measured_kl", std::string(name(d))).has_value();
      });
      if (!measured && role_of(c.tensor).layer >= 0) doubtful = c.key;
    }
    ASSERT_NE(doubtful, "");
    session.db().put(doubtful, "predicted_kl", "Q4_0", 3.0);
  }
  Session session(rt, settings);
  const Problem& problem = session.problem();
  for (const Place& place : problem.places)
    for (const Option& option : place.options)
      if (place.name == doubtful && option.dtype == Dtype::Q4_0) {
        EXPECT_LT(option.loss, kMuch);
        EXPECT_GT(option.loss, 0);
      }
  EXPECT_TRUE(session.db().value(doubtful, "measured_kl", "Q4_0").has_value());
}

TEST_F(SessionTest, AHopelessGoalIsRefusedBeforeAnythingIsMeasured) {
  const SessionSettings settings = small(tiny("tiny_llama"));
  Goal few_bits;
  few_bits.bits_per_weight = 0.5;
  few_bits.text = "--bpw 0.5";
  {
    Session session(rt, settings);
    EXPECT_THROW(session.plan(size_goal(10'000)), Error);
    EXPECT_THROW(session.plan(few_bits), Error);
  }
  const auto measured = [&] {
    sqlite3* handle = nullptr;
    EXPECT_EQ(sqlite3_open(settings.db.c_str(), &handle), SQLITE_OK);
    sqlite3_stmt* count = nullptr;
    sqlite3_prepare_v2(handle, "SELECT count(*) FROM measurement", -1, &count, nullptr);
    EXPECT_EQ(sqlite3_step(count), SQLITE_ROW);
    const int64_t rows = sqlite3_column_int64(count, 0);
    sqlite3_finalize(count);
    sqlite3_close(handle);
    return rows;
  };
  EXPECT_EQ(measured(), 0);
  {
    Session session(rt, settings);
    session.plan(size_goal(100'000));
  }
  EXPECT_GT(measured(), 0);
}

TEST_F(SessionTest, PlansStayInTheirBudgetAndTheFileHasExactlyThePlannedBytes) {
  for (const auto& name : kTinyModels) {
    Session session(rt, small(tiny(name)));
    const auto whole = int64_t(std::filesystem::file_size(tiny(name)));
    double loss_before = -1;
    for (double share : {1.0, 0.7, 0.4, 0.3, 0.2, 0.18}) {
      SCOPED_TRACE(name + " " + std::to_string(share));
      const auto budget = int64_t(double(whole) * share);
      const Plan plan = session.plan(size_goal(budget));
      EXPECT_LE(plan.predicted_bytes, budget);
      EXPECT_EQ(plan.predicted_bytes, session.exact_bytes(plan));
      EXPECT_GE(plan.predicted_kl, loss_before);
      loss_before = plan.predicted_kl;
      const Model cut = session.cut(plan);
      const Comparison proof = session.prove(cut);
      EXPECT_TRUE(std::isfinite(proof.kl_mean.value));
      const auto out = folder.path() / "out.gguf";
      session.write(out, cut, plan, proof);
      EXPECT_EQ(int64_t(std::filesystem::file_size(out)), session.exact_bytes(plan));
      const Model opened = open_model(out.string());
      for (const LinearMap* map : linear_maps(opened))
        for (const Decision& d : plan.decisions)
          if (d.place == map->name) {
            EXPECT_EQ(map->weight.dtype, d.chosen.dtype) << map->name;
          }
    }
    EXPECT_GT(loss_before, 0);
    try {
      session.plan(size_goal(10'000));
      ADD_FAILURE() << "10 kB are too few";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("fewest bytes reachable"), std::string::npos)
          << e.what();
    }
  }
}

TEST_F(SessionTest, BudgetsHoldToTheByteWithFeedbackAndRefinement) {
  SessionSettings plain = small(tiny(kTinyModels[0])), full = plain;
  full.feedback = Feedback::independent;
  full.refine_steps = 1;
  Session session(rt, full), planner(rt, plain);
  const auto whole = int64_t(std::filesystem::file_size(plain.model));
  for (int64_t budget = whole / 2; budget < whole / 2 + 1000; budget += 37) {
    SCOPED_TRACE(budget);
    const Plan plan = session.plan(size_goal(budget));
    EXPECT_LE(plan.predicted_bytes, budget);
    // A plan made without them is the same, and leaves room for them.
    Plan apart = planner.plan(size_goal(budget));
    EXPECT_LE(session.exact_bytes(apart), budget);
    apart.predicted_bytes = plan.predicted_bytes;
    EXPECT_EQ(to_json(apart), to_json(plan));
  }
}

TEST_F(SessionTest, BiasesAreCountedToTheByte) {
  for (const auto& name : kTinyModels) {
    SessionSettings settings = small(tiny(name));
    settings.biases = true;
    Session session(rt, settings);
    const auto whole = int64_t(std::filesystem::file_size(tiny(name)));
    for (double share : {0.5, 0.3, 0.22}) {
      SCOPED_TRACE(name + " " + std::to_string(share));
      const auto budget = int64_t(double(whole) * share);
      const Plan plan = session.plan(size_goal(budget));
      EXPECT_LE(plan.predicted_bytes, budget);
      const Model cut = session.cut(plan);
      const Comparison proof = session.prove(cut);
      const auto out = folder.path() / "out.gguf";
      session.write(out, cut, plan, proof);
      EXPECT_EQ(int64_t(std::filesystem::file_size(out)), plan.predicted_bytes);
      size_t biases = 0, before = 0;
      const Model written = open_model(out.string());
      for (const LinearMap* map : linear_maps(written)) biases += !map->bias.empty();
      for (const LinearMap* map : linear_maps(session.model())) before += !map->bias.empty();
      if (name == "tiny_llama") {
        EXPECT_EQ(before, 0);
        EXPECT_EQ(biases, 3 * session.model().n_layers);
      }
      if (name == "tiny_gemma3") {
        EXPECT_EQ(biases, 0);
      }
      EXPECT_GE(biases, before);
    }
  }
}

// Not the sum of the places' losses: that of the whole plan on calibration text.
TEST_F(SessionTest, WhatAPlanLosesIsMeasuredAsAWhole) {
  for (const std::string name : {"tiny_llama", "tiny_qwen2"}) {
    SCOPED_TRACE(name);
    Session session(rt, small(tiny(name)));
    const auto whole = double(std::filesystem::file_size(tiny(name)));
    const Plan plan = session.plan(size_goal(int64_t(whole * 0.3)));
    PlaceLoss loss(rt, session.model(), windows_of_text(session.calibration().windows));
    const double measured = loss.measure(session.cut(plan));
    ASSERT_GT(measured, 1e-5) << "what f32 sums round away is not measured";
    EXPECT_NEAR(plan.predicted_kl, measured, 1e-3 * measured);
    double sum = 0;
    for (const Decision& d : plan.decisions) sum += d.chosen.loss;
    EXPECT_NE(plan.predicted_kl, sum);
  }
}

TEST_F(SessionTest, BitsPerWeightCountAllTensors) {
  Session session(rt, small(tiny("tiny_llama")));
  Goal goal;
  goal.bits_per_weight = 9;
  goal.text = "--bpw 9";
  const Plan plan = session.plan(goal);
  int64_t weights = 0, bytes = 0;
  for (const Tensor& t : session.model().file->tensors) {
    int64_t n = 1;
    for (int64_t d : t.shape) n *= d;
    weights += n;
    bytes += std::ssize(t.data.bytes);
  }
  for (const LinearMap* map : linear_maps(session.model())) bytes -= map->weight.bytes();
  for (const Decision& d : plan.decisions) bytes += d.chosen.bytes;
  EXPECT_LE(8.0 * double(bytes) / double(weights), 9);
  EXPECT_GT(8.0 * double(bytes) / double(weights), 8.5);
}

TEST_F(SessionTest, AUniformPlanGivesEveryMapItsFormat) {
  Session session(rt, small(tiny("tiny_qwen3")));
  Goal goal;
  goal.uniform = Dtype::Q5_0;
  goal.text = "--type Q5_0";
  const Plan plan = session.plan(goal);
  const Model cut = session.cut(plan);
  for (const LinearMap* map : linear_maps(cut)) EXPECT_EQ(map->weight.dtype, Dtype::Q5_0);
  EXPECT_EQ(plan.decisions.size(), linear_maps(cut).size());
}

TEST_F(SessionTest, AFormatThatDoesNotFitIsExplained) {
  Goal goal;
  goal.uniform = Dtype::Q4_K;
  goal.text = "--type Q4_K";
  Session none(rt, small(tiny("tiny_qwen3")));
  try {
    none.plan(goal);
    ADD_FAILURE() << "no row has 256";
  } catch (const Error& e) {
    const std::string said = e.what();
    EXPECT_NE(said.find("blocks of 256 fit no row of this model (rows have 64, 96, 128)"),
              said.npos)
        << said;
    EXPECT_NE(said.find("formats that fit: F32, "), said.npos) << said;
    EXPECT_EQ(said.find("Q6_K"), said.npos) << said;
  }
  test::make_model(folder / "some.gguf", {.d_ff = 256});
  Session some(rt, small(folder / "some.gguf"));
  const Plan plan = some.plan(goal);
  EXPECT_EQ(plan.note,
            "Q4_K needs rows that are a multiple of 256: of 9 places 8 with rows of 64 "
            "take Q5_0");
  EXPECT_LT(plan.optimality_gap, 0) << "nothing was optimised";
  goal.uniform = Dtype::Q4_0;
  EXPECT_EQ(some.plan(goal).note, "");
}

TEST_F(SessionTest, TheFrontierIsNeverAboveTheSource) {
  for (const auto& name : {"tiny_llama", "tiny_qwen2"}) {
    Session session(rt, small(tiny(name)));
    const auto curve = session.frontier(12);
    EXPECT_LE(curve.back().bytes, int64_t(std::filesystem::file_size(tiny(name))));
    EXPECT_GE(curve.size(), 8u);
  }
}

TEST_F(SessionTest, WhatIsPredictedIsNearWhatIsMeasured) {
  Session session(rt, small(tiny("tiny_llama")));
  for (int64_t bytes : {90'000, 75'000, 65'000}) {
    const Plan plan = session.plan(size_goal(bytes));
    const Comparison proof = session.prove(session.cut(plan));
    EXPECT_GT(proof.kl_mean.value, plan.predicted_kl / 2) << bytes;
    EXPECT_LT(proof.kl_mean.value, plan.predicted_kl * 2) << bytes;
    EXPECT_LE(proof.kl_mean.low, proof.kl_mean.value);
    EXPECT_GE(proof.kl_mean.high, proof.kl_mean.value);
    EXPECT_EQ(proof.n_windows, 4);
  }
}

TEST_F(SessionTest, ABoundIsAimedAtOnTextThatTheProofDoesNotSee) {
  auto settings = small(tiny("tiny_llama"));
  settings.aims = true;
  Session session(rt, settings);
  const Calibration& c = session.calibration();
  ASSERT_EQ(c.aim.size(), c.proof.size());
  for (const auto& window : c.aim) {
    EXPECT_EQ(std::count(c.proof.begin(), c.proof.end(), window), 0);
    EXPECT_EQ(std::count(c.windows.begin(), c.windows.end(), window), 0);
  }
  // Asking for them changes nothing of what the other goals use.
  Session plain(rt, small(tiny("tiny_llama")));
  EXPECT_EQ(plain.calibration().windows, c.windows);
  EXPECT_EQ(plain.calibration().proof, c.proof);
  EXPECT_TRUE(plain.calibration().aim.empty());

  for (double bound : {0.002, 0.02, 0.2}) {
    SCOPED_TRACE(bound);
    Goal goal;
    goal.max_kl = bound;
    goal.text = fmt::format("--max-kl {}", bound);
    std::vector<std::string> said;
    const Result r =
        carry_out(session, goal, [&](const std::string& note) { said.push_back(note); });
    EXPECT_LE(r.proof.kl_mean.value, bound);
    EXPECT_EQ(said, r.notes);
    const double aimed = session.aim(r.cut).kl_mean.value;
    EXPECT_LE(aimed, bound);
    EXPECT_TRUE(r.plan.aimed_on.starts_with(c.aim_name)) << r.plan.aimed_on;
    // Where the proof missed it once, that is said, and how far below the bound is aimed.
    const bool again = r.plan.aimed_on.ends_with(", and the proof's");
    EXPECT_EQ(again, r.notes.end() !=
                         std::find_if(r.notes.begin(), r.notes.end(), [](const std::string& note) {
                           return note.starts_with("the proof missed");
                         }));
    // What a bisection over sizes finds on the same text is hardly smaller.
    if (!again) {
      const Plan less = session.plan(size_goal(r.plan.predicted_bytes * 98 / 100));
      EXPECT_GT(session.aim(session.cut(less)).kl_mean.value, bound);
    }
    session.write(folder.path() / "out.gguf", r.refined, r.plan, r.proof);
    EXPECT_EQ(int64_t(std::filesystem::file_size(folder / "out.gguf")), r.plan.predicted_bytes);
    const TensorFile file = read_gguf(folder / "out.gguf");
    EXPECT_EQ(file.need_string("microtome.plan.aimed_on"), r.plan.aimed_on);
    EXPECT_EQ(plan_from_json(to_json(r.plan), "plan").aimed_on, r.plan.aimed_on);
  }
}

TEST_F(SessionTest, ATextsOwnWindowsAreDividedOnce) {
  std::string text;
  for (int i = 0; i < 2000; ++i) text += char('a' + (i * i / 7 + i) % 26);
  test::write_bytes(folder / "t.txt", text);
  auto settings = small(tiny("tiny_llama"));
  settings.texts = {folder / "t.txt"};
  settings.aims = true;
  settings.refine_steps = 1000;
  Session session(rt, settings);
  const Calibration c = session.calibration();
  ASSERT_EQ(c.aim.size(), 4u);
  std::vector<std::vector<int32_t>> decided = c.proof;
  decided.insert(decided.end(), c.aim.begin(), c.aim.end());
  for (const auto& window : decided) {
    EXPECT_EQ(std::count(decided.begin(), decided.end(), window), 1);
    EXPECT_EQ(std::count(c.windows.begin(), c.windows.end(), window), 0);
    EXPECT_EQ(std::count(c.refine.begin(), c.refine.end(), window), 0);
  }
  // A text that has no more windows: the calibration's serve, and that is said.
  settings.n_windows = 1000;
  Session all(rt, settings);
  EXPECT_EQ(all.calibration().aim, all.calibration().windows);
  EXPECT_NE(all.calibration().aim_name.find("calibration"), std::string::npos);
}

TEST_F(SessionTest, RefinementReadsTextOfItsOwn) {
  auto settings = small(tiny("tiny_llama"));
  settings.refine_steps = 20;
  settings.aims = true;
  Session session(rt, settings);
  const Calibration& c = session.calibration();
  EXPECT_EQ(c.refine.size(), 20u);  // six of them the calibration's
  for (const auto& window : c.refine) {
    EXPECT_EQ(std::count(c.refine.begin(), c.refine.end(), window), 1);
    EXPECT_EQ(std::count(c.proof.begin(), c.proof.end(), window), 0);
    EXPECT_EQ(std::count(c.aim.begin(), c.aim.end(), window), 0);
  }
}

TEST_F(SessionTest, WhatIsKeptWholeIsNotRefined) {
  auto settings = small(tiny("tiny_llama"));
  settings.refine_steps = 12;
  Session session(rt, settings);
  auto silent = [](const std::string&) {};
  const Result kept = carry_out(session, size_goal(1 << 30), silent);
  EXPECT_EQ(kept.proof.kl_mean.value, 0);
  for (size_t i = 0; i < norms(kept.refined).size(); ++i)
    EXPECT_EQ(*norms(kept.refined)[i].gain, *norms(kept.cut)[i].gain);
  session.write(folder / "kept.gguf", kept.refined, kept.plan, kept.proof);
  EXPECT_EQ(read_gguf(folder / "kept.gguf").find_meta("microtome.refine.steps"), nullptr);
  // And another plan of the same session is.
  const int64_t whole = kept.plan.predicted_bytes;
  const Result less = carry_out(session, size_goal(whole / 5), silent);
  session.write(folder / "less.gguf", less.refined, less.plan, less.proof);
  EXPECT_NE(read_gguf(folder / "less.gguf").find_meta("microtome.refine.steps"), nullptr);
}

TEST_F(SessionTest, RefinementThatDoesNotHelpIsLeftOut) {
  auto settings = small(tiny("tiny_llama"));
  settings.refine_steps = 1;
  const auto silent = [](const std::string&) {};
  int helped = 0, left_out = 0;
  for (double share : {0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25}) {
    Session session(rt, settings);
    const auto bytes = int64_t(share * double(std::filesystem::file_size(settings.model)));
    const Result r = carry_out(session, size_goal(bytes), silent);
    EXPECT_LE(r.proof.kl_mean.value, session.prove(r.cut).kl_mean.value) << share;
    ASSERT_FALSE(r.notes.empty());
    const bool out = r.notes.back().starts_with("refinement did not help");
    (out ? left_out : helped) += 1;
    EXPECT_EQ(written(session, r).find_meta("microtome.refine.steps") == nullptr, out);
  }
  EXPECT_GT(helped, 0);
  EXPECT_GT(left_out, 0);
}

TEST_F(SessionTest, FeedbackThatDoesNotHelpIsLeftOut) {
  auto settings = small(tiny("tiny_llama"));
  settings.feedback = Feedback::independent;
  settings.n_windows = 1;  // of few tokens: now and then what they say does not hold
  settings.n_ctx = 8;
  const auto silent = [](const std::string&) {};
  int helped = 0, left_out = 0;
  for (double share : {0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2}) {
    Session session(rt, settings);
    const auto bytes = int64_t(share * double(std::filesystem::file_size(settings.model)));
    const Result r = carry_out(session, size_goal(bytes), silent);
    const double with = session.prove(session.cut(r.plan, Feedback::independent)).kl_mean.value;
    const double without = session.prove(session.cut(r.plan, Feedback::none)).kl_mean.value;
    EXPECT_EQ(r.proof.kl_mean.value, std::min(with, without)) << share;
    ASSERT_FALSE(r.notes.empty());
    const bool out = r.notes.back().starts_with("error feedback did not help");
    EXPECT_EQ(out, with > without);
    (out ? left_out : helped) += 1;
    EXPECT_EQ(written(session, r).find_meta("microtome.feedback") == nullptr, out);
  }
  EXPECT_GT(helped, 0);
  EXPECT_GT(left_out, 0);
}

TEST_F(SessionTest, RefinementLayerByLayerIsSaidAndWritten) {
  auto settings = small(tiny("tiny_llama"));
  settings.refine_steps = 12;
  for (RefineBy by : {RefineBy::model, RefineBy::layer}) {
    settings.refine_by = by;
    Session session(rt, settings);
    const auto whole = int64_t(std::filesystem::file_size(settings.model));
    const Result r = carry_out(session, size_goal(whole / 5), [](const std::string&) {});
    const bool said = std::any_of(r.notes.begin(), r.notes.end(), [](const std::string& note) {
      return note.starts_with("refined layer by layer");
    });
    EXPECT_EQ(said, by == RefineBy::layer);
    ASSERT_TRUE(r.notes.back().starts_with("refined: ")) << r.notes.back();
    EXPECT_EQ(written(session, r).need_string("microtome.refine.by"),
              by == RefineBy::layer ? "layer" : "model");
    session.finish();  // of its state nothing is left
    for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
      EXPECT_EQ(entry.path().string().find(".refine-"), std::string::npos) << entry.path();
    std::filesystem::remove(folder / "out.gguf");
  }
}

TEST_F(SessionTest, ACutAfterAnotherMakesTheSameTensors) {
  Session session(rt, small(tiny("tiny_llama"))), fresh(rt, small(tiny("tiny_llama")));
  const Plan large = session.plan(size_goal(90'000)), less = session.plan(size_goal(85'000));
  session.cut(large);
  const Model after = session.cut(less), alone = fresh.cut(less);
  const auto a = linear_maps(after), b = linear_maps(alone);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i]->weight.dtype, b[i]->weight.dtype);
    EXPECT_TRUE(std::ranges::equal(a[i]->weight.data.bytes, b[i]->weight.data.bytes)) << a[i]->name;
  }
}

TEST_F(SessionTest, MoreBytesLoseLess) {
  Session session(rt, small(tiny("tiny_llama")));
  const auto curve = session.frontier(8);
  ASSERT_GE(curve.size(), 4u);
  for (size_t i = 1; i < curve.size(); ++i) {
    EXPECT_GT(curve[i].bytes, curve[i - 1].bytes);
    EXPECT_LT(curve[i].predicted_kl, curve[i - 1].predicted_kl);
  }
}

TEST_F(SessionTest, ASecondSessionFindsWhatTheFirstMeasured) {
  const auto settings = small(tiny("tiny_llama"));
  std::string first, second;
  {
    Session session(rt, settings);
    first = to_json(session.plan(size_goal(80'000)));
  }
  const auto before = std::filesystem::last_write_time(settings.db);
  {
    Session session(rt, settings);
    second = to_json(session.plan(size_goal(80'000)));
  }
  EXPECT_EQ(second, first);
  EXPECT_EQ(std::filesystem::last_write_time(settings.db), before);
  // From nothing, with another number of threads.
  ThreadPool three(3);
  auto elsewhere = settings;
  elsewhere.db = folder.path() / "other.db";
  Session other({rt.kernels, three}, elsewhere);
  EXPECT_EQ(to_json(other.plan(size_goal(80'000))), first);
}

TEST_F(SessionTest, AMatrixHeldTwiceBecomesOne) {
  test::make_model(
      folder / "twice.gguf",
      {.arch = "qwen2", .head = MadeModel::Head::rounded_embedding, .head_dtype = Dtype::Q8_0});
  Session session(rt, small(folder / "twice.gguf"));
  // The smallest file: whatever the prediction says, one tensor is fewer bytes than two.
  const auto curve = session.frontier(6);
  const Plan plan = session.plan(size_goal(curve.front().bytes));
  EXPECT_EQ(plan.head, HeadPlan::tied);
  const Model cut = session.cut(plan);
  const Comparison proof = session.prove(cut);
  session.write(folder.path() / "one.gguf", cut, plan, proof);
  const Model opened = open_model(folder / "one.gguf");
  EXPECT_FALSE(opened.head);
  EXPECT_EQ(opened.file->find_tensor("output.weight"), nullptr);
  EXPECT_EQ(int64_t(std::filesystem::file_size(folder / "one.gguf")), session.exact_bytes(plan));
  // Much room: both are kept as they are.
  EXPECT_EQ(session.plan(size_goal(1'000'000)).head, HeadPlan::as_source);
  const Report report = session.report(plan, cut, proof);
  EXPECT_EQ(report.places.size(), plan.decisions.size());
}

TEST_F(SessionTest, TheImatrixHoldsTheInputMoments) {
  Session session(rt, small(tiny("tiny_llama")));
  const Imatrix m = session.imatrix();
  write_imatrix(folder.path() / "m.gguf", m);
  const Imatrix read = read_imatrix(folder.path() / "m.gguf");
  const Profile& profile = session.profile();
  ASSERT_EQ(read.entries.size(), profile.maps.size());
  for (const ImatrixEntry& e : read.entries) {
    const auto& in2 = profile.maps.at(e.tensor).in2;
    ASSERT_EQ(e.in_sum2.size(), in2.size());
    EXPECT_EQ(e.count, double(profile.n_tokens));
    for (size_t i = 0; i < in2.size(); ++i)
      EXPECT_NEAR(double(e.in_sum2[i]) / e.count, in2[i], 1e-5 * double(in2[i]));
  }
}

}  // namespace
}  // namespace mt
