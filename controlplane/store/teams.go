package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/keeptrusts/gateway/abac"
)

// Team is a team that has a record. Bindings may name one that has none.
type Team struct {
	OrgID     string
	ID        string
	Name      string
	Revision  int64
	CreatedAt time.Time
	DeletedAt *time.Time // nil: it stands
}

// Told is the team as gateways are told of it.
func (t *Team) Told() abac.Team {
	return abac.Team{ID: t.ID, Deleted: t.DeletedAt != nil, Revision: t.Revision}
}

// eventTeam is the kind of every change of a team.
const eventTeam = "team.changed"

const (
	teamColumns = `org_id, id, name, revision, created_at, deleted_at`
	selectTeam  = `SELECT ` + teamColumns + ` FROM teams WHERE org_id = $1 AND id = $2`

	selectDeletedTeams = `SELECT ` + teamColumns + ` FROM teams WHERE org_id = $1 AND deleted_at IS NOT NULL`
)

func scanTeam(scanned func(...any) error) (Team, error) {
	var t Team
	var created int64
	var deleted sql.NullInt64
	err := scanned(&t.OrgID, &t.ID, &t.Name, &t.Revision, &created, &deleted)
	t.CreatedAt, t.DeletedAt = timeOf(created), timePointer(deleted)
	return t, err
}

func oneTeam(row *sql.Row) (Team, error) {
	t, err := scanTeam(row.Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return Team{}, ErrNotFound
	}
	if err != nil {
		return Team{}, fmt.Errorf("read team: %w", err)
	}
	return t, nil
}

// Team returns the org's team with this id, deleted or not, or ErrNotFound.
func (s *Store) Team(ctx context.Context, org, id string) (Team, error) {
	return oneTeam(s.read.QueryRowContext(ctx, selectTeam, org, id))
}

// Team returns the team as the transaction sees it, or ErrNotFound.
func (t *Tx) Team(ctx context.Context, org, id string) (Team, error) {
	return oneTeam(t.tx.QueryRowContext(ctx, selectTeam, org, id))
}

// Teams lists at most limit of an org's teams, by id; deleted ones too. After is the
// id of the last one before the page, or "".
func (s *Store) Teams(ctx context.Context, org, after string, limit int) ([]Team, error) {
	return teams(s.read.QueryContext(ctx, `SELECT `+teamColumns+` FROM teams
		WHERE org_id = $1 AND id > $2 ORDER BY id LIMIT $3`, org, after, limit))
}

// DeletedTeams lists those of an org's teams that are deleted.
func (s *Store) DeletedTeams(ctx context.Context, org string) ([]Team, error) {
	return teams(s.read.QueryContext(ctx, selectDeletedTeams, org))
}

func teams(rows *sql.Rows, err error) ([]Team, error) {
	if err != nil {
		return nil, fmt.Errorf("list teams: %w", err)
	}
	defer func() { _ = rows.Close() }()
	list := []Team{}
	for rows.Next() {
		t, err := scanTeam(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("list teams: %w", err)
		}
		list = append(list, t)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list teams: %w", err)
	}
	return list, nil
}

// PutTeam stores a team's name and whether it is deleted as a change, makes the
// record where there is none, and sets its revision and what storing does to its
// times.
func (t *Tx) PutTeam(ctx context.Context, n *Team) error {
	revision, err := t.revision(ctx, n.OrgID, n.ID, eventTeam)
	if err != nil {
		return err
	}
	row := t.tx.QueryRowContext(ctx, `INSERT INTO teams (org_id, id, name, revision, created_at, deleted_at)
		VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (org_id, id) DO UPDATE
		SET name = excluded.name, revision = excluded.revision, deleted_at = excluded.deleted_at
		RETURNING `+teamColumns, n.OrgID, n.ID, n.Name, revision, micros(n.CreatedAt), microsOf(n.DeletedAt))
	*n, err = scanTeam(row.Scan)
	if err != nil {
		return fmt.Errorf("store team: %w", err)
	}
	return nil
}

// TeamHasTokens says whether a token of the org is bound to this team.
func (t *Tx) TeamHasTokens(ctx context.Context, org, id string) (bool, error) {
	var has bool
	err := t.tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM tokens WHERE team_id = $1 AND org_id = $2)`, id, org).Scan(&has)
	if err != nil {
		return false, fmt.Errorf("look for a team's tokens: %w", err)
	}
	return has, nil
}
