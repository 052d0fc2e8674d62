-- Amounts are whole numbers of the budget's unit. "win" names a window; in
-- counters and charges ends_at is the largest BIGINT for one that never ends.
CREATE TABLE budgets (
  org_id     TEXT NOT NULL,
  id         TEXT NOT NULL,
  unit       TEXT NOT NULL,
  period     TEXT NOT NULL,
  lim        BIGINT NOT NULL,
  mode       TEXT NOT NULL,
  team_id    TEXT,
  whole_org  BIGINT NOT NULL,
  revision   BIGINT NOT NULL UNIQUE,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (org_id, id)
);
CREATE INDEX budgets_team ON budgets (org_id, team_id) WHERE team_id IS NOT NULL;
CREATE INDEX budgets_org ON budgets (org_id) WHERE whole_org = 1;

-- taken is always the sum over a counter's leases of granted - returned + overrun.
CREATE TABLE counters (
  org_id    TEXT NOT NULL,
  budget    TEXT NOT NULL,
  win       TEXT NOT NULL,
  lim       BIGINT NOT NULL,
  taken     BIGINT NOT NULL,
  overrun   BIGINT NOT NULL,
  phase     BIGINT NOT NULL,
  phase_at  BIGINT NOT NULL,
  unmet     BIGINT NOT NULL,
  starts_at BIGINT NOT NULL,
  ends_at   BIGINT NOT NULL,
  PRIMARY KEY (org_id, budget, win)
);
CREATE INDEX counters_end ON counters (ends_at);

CREATE TABLE sessions (
  org_id     TEXT NOT NULL,
  session    TEXT NOT NULL,
  gateway_id TEXT NOT NULL,
  seq        BIGINT NOT NULL,
  last_seen  BIGINT NOT NULL,
  closed_at  BIGINT,
  PRIMARY KEY (org_id, session)
);
CREATE INDEX sessions_closed ON sessions (closed_at) WHERE closed_at IS NOT NULL;

-- The lease of session '' is what a counter was charged by those that are gone.
CREATE TABLE leases (
  org_id   TEXT NOT NULL,
  budget   TEXT NOT NULL,
  win      TEXT NOT NULL,
  session  TEXT NOT NULL,
  granted  BIGINT NOT NULL,
  returned BIGINT NOT NULL,
  spent    BIGINT NOT NULL,
  overrun  BIGINT NOT NULL,
  held     BIGINT NOT NULL,
  seen     BIGINT NOT NULL,
  acked    BIGINT NOT NULL,
  PRIMARY KEY (org_id, budget, win, session)
);
CREATE INDEX leases_session ON leases (org_id, session, budget, win);
CREATE INDEX leases_untold ON leases (org_id, session) WHERE granted > seen;

CREATE TABLE top_ups (
  org_id  TEXT NOT NULL,
  budget  TEXT NOT NULL,
  request TEXT NOT NULL,
  amount  BIGINT NOT NULL,
  win     TEXT NOT NULL,
  at      BIGINT NOT NULL,
  PRIMARY KEY (org_id, budget, request)
);

-- What settlements have told of a budget's window: all there is of an observed one.
CREATE TABLE charges (
  org_id   TEXT NOT NULL,
  budget   TEXT NOT NULL,
  win      TEXT NOT NULL,
  amount   BIGINT NOT NULL,
  unpriced BIGINT NOT NULL,
  ends_at  BIGINT NOT NULL,
  PRIMARY KEY (org_id, budget, win)
);
CREATE INDEX charges_end ON charges (ends_at);

CREATE TABLE settlements (
  org_id       TEXT NOT NULL,
  id           TEXT NOT NULL,
  gateway_id   TEXT NOT NULL,
  at           BIGINT NOT NULL,
  token_id     TEXT NOT NULL,
  team_id      TEXT NOT NULL,
  model        TEXT NOT NULL,
  target       TEXT NOT NULL,
  requests     BIGINT NOT NULL,
  input        BIGINT NOT NULL,
  cached_input BIGINT NOT NULL,
  cache_write  BIGINT NOT NULL,
  output       BIGINT NOT NULL,
  reasoning    BIGINT NOT NULL,
  audio_input  BIGINT NOT NULL,
  audio_output BIGINT NOT NULL,
  cost         BIGINT NOT NULL,
  unpriced     BIGINT NOT NULL,
  estimated    BIGINT NOT NULL,
  charged      TEXT NOT NULL,
  PRIMARY KEY (org_id, id)
);
CREATE INDEX settlements_at ON settlements (at);

-- Sums of settlements; unpriced and estimated count requests.
CREATE TABLE usage (
  org_id       TEXT NOT NULL,
  day          TEXT NOT NULL,
  token_id     TEXT NOT NULL,
  team_id      TEXT NOT NULL,
  model        TEXT NOT NULL,
  target       TEXT NOT NULL,
  requests     BIGINT NOT NULL,
  input        BIGINT NOT NULL,
  cached_input BIGINT NOT NULL,
  cache_write  BIGINT NOT NULL,
  output       BIGINT NOT NULL,
  reasoning    BIGINT NOT NULL,
  audio_input  BIGINT NOT NULL,
  audio_output BIGINT NOT NULL,
  cost         BIGINT NOT NULL,
  unpriced     BIGINT NOT NULL,
  estimated    BIGINT NOT NULL,
  PRIMARY KEY (org_id, day, token_id, team_id, model, target)
);
CREATE INDEX usage_token ON usage (org_id, token_id, day);
