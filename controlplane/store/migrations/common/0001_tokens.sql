-- Times are microseconds since 1970, UTC. Revisions come from head alone, whose
-- one row every change locks first: so they rise in the order of commits.
CREATE TABLE head (
  one      INTEGER PRIMARY KEY CHECK (one = 1),
  revision BIGINT NOT NULL,
  audit    BIGINT NOT NULL
);
INSERT INTO head (one, revision, audit) VALUES (1, 0, 0);

CREATE TABLE tokens (
  id                TEXT PRIMARY KEY,
  digest            TEXT NOT NULL UNIQUE,
  org_id            TEXT NOT NULL,
  name              TEXT NOT NULL,
  purpose           TEXT NOT NULL,
  principal_type    TEXT NOT NULL,
  status            TEXT NOT NULL,
  revision          BIGINT NOT NULL UNIQUE,
  not_before        BIGINT,
  expires_at        BIGINT,
  bindings          TEXT NOT NULL,
  gateway_id        TEXT,
  team_id           TEXT,
  hint              TEXT NOT NULL,
  created_at        BIGINT NOT NULL,
  last_used_at      BIGINT,
  last_used_gateway TEXT,
  rotated_from      TEXT REFERENCES tokens (id)
);
CREATE INDEX tokens_team ON tokens (team_id, id);

-- One row a change: what a watch of the control plane reads on from.
CREATE TABLE changes (
  revision BIGINT PRIMARY KEY,
  at       BIGINT NOT NULL,
  org_id   TEXT NOT NULL,
  subject  TEXT NOT NULL,
  event    TEXT NOT NULL
);

CREATE TABLE audit (
  seq       BIGINT PRIMARY KEY,
  at        BIGINT NOT NULL,
  actor     TEXT NOT NULL,
  event     TEXT NOT NULL,
  subject   TEXT NOT NULL,
  before_is TEXT,
  after_is  TEXT
);
CREATE INDEX audit_subject ON audit (subject, seq);

CREATE TABLE instances (
  org_id     TEXT NOT NULL,
  gateway_id TEXT NOT NULL,
  instance   TEXT NOT NULL,
  build      TEXT NOT NULL,
  max_stale  BIGINT NOT NULL,
  last_seen  BIGINT NOT NULL,
  PRIMARY KEY (org_id, gateway_id, instance)
);
