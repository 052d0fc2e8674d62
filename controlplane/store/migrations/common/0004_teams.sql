-- Teams that have a record; deleted_at is NULL while one stands.
CREATE TABLE teams (
  org_id     TEXT NOT NULL,
  id         TEXT NOT NULL,
  name       TEXT NOT NULL,
  revision   BIGINT NOT NULL UNIQUE,
  created_at BIGINT NOT NULL,
  deleted_at BIGINT,
  PRIMARY KEY (org_id, id)
);
CREATE INDEX teams_deleted ON teams (org_id) WHERE deleted_at IS NOT NULL;
