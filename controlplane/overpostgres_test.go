package controlplane

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	goruntime "runtime"
	"strings"
	"testing"
)

// bothDatabases are the tests that are run over SQLite by their names and over
// PostgreSQL by TestOverPostgreSQL.
var bothDatabases = []func(*testing.T){
	TestBodiesAreReadStrictly, TestMediaTypes, TestAProfileIsAnsweredWhole, TestListsAreFilteredAndPaged, TestRotation,
	TestATokensLife, TestIdentifyTellsTheReachOfAString, TestTheAuditLogHasEveryChangeNewestFirst, TestProbesNeedNoCredential,
	TestABindingNamesABudgetOrMakesIt, TestATokenKeepsItsBudgets, TestIdentifyTellsWhereItsBudgetsStand,
	TestABudgetIsMadeAndChanged, TestABudgetIsAnsweredWhole, TestOneIDIsOneBudgetInEachOrg, TestBudgetsOfATokenThatIsNotThere,
	TestATopUpCountsOnceAKey, TestATopUpBeyondWhatCanBeCountedIsRefused, TestGatewaysHearAtOnceOfABudgetThatChanges,
	TestTokensThatBringOneBudgetAtOnceShareIt, TestBudgetsAreAudited,
	TestTheClientDoesWhatTheServerServes,
	TestStoppingATokenWaitsForThoseWhoWatchAndNamesTheOthers, TestAnInstanceThatCameAfterwardsIsNotWaitedFor,
	TestEachLineOfAnImportHasItsResult, TestAnImportAnswersWhileItIsSent, TestAnImportTakesAllBeforeAnythingIsRead,
	TestAnImportThatBreaksOffDoesNotLookWhole,
	TestALedgerIsServedAlikeOverHTTPAndInProcess, TestAClosedSessionIsAConflict, TestResolveTellsTheBudgetsOfAToken,
	TestLeaseCallsAreReadStrictly, TestSettlementsAreReadStrictly, TestAnUnmetNeedIsCalledBackFromTheOthers,
	TestEveryProfileCanDoWhatTheMatrixSaysAndNothingElse, TestCredentialsAreTakenUnderTheDataPlanesRules,
	TestAnUnknownParameterIsRefusedEverywhereAndChangesNothing, TestOnlyWhoMayHoldATokenIsAnInstance,
	TestPatch, TestPatchTakesRevisionsAndTimes,
	TestAGatewaySeesItsOwnOrgAndOfOthersTokensTheLeast, TestWhoamiIsTheProfileAtTopLevel,
	TestStoppingATokenNamesEveryGatewayHeardFromLately, TestAGatewayThatKeepsAskingIsNotForgotten,
	TestARestartRemembersWhoWasHeard, TestAReportNotesTheLastUseWithoutAChange,
	TestAMisplacedCredentialIsNotedOnceAMinuteAGateway, TestEmbeddedIsOneInstanceUnderTheNameItReports,
	TestAPanicIsAnErrorInShape, TestTheAdminToken,
	TestATokenIsMintedResolvedAndRevoked,
	TestASnapshotTellsAllThatAGatewayMayKnow, TestASnapshotIsOfOneMomentAndTheWatchGoesOnFromIt,
	TestASnapshotIsPackedForWhoTakesIt, TestSlowReadersOfSnapshotsHoldUpNobodyAndAreCut,
	TestASnapshotThatBreaksOffBreaksTheConnection,
	TestWhatIsAnsweredIsKnownToTheGatewayInTheSameProcess, TestAGatewayThatDoesNotTakeItInHoldsNoAnswerUp,
	TestAGatewaysRecordIsMadeRenamedAndForgotten, TestGatewaysAreListedWithTheirProcesses,
	TestForgettingAGatewayNamesTheTokensThatLetItIn, TestADataPlanesRefusalIsNotTakenForAControlPlanes,
	TestATeamIsMadeRenamedDeletedAndRestored, TestTeamsAreListedInPages, TestATeamWithoutARecordIsDeletedForItsTokens,
	TestADeletedTeamIsOneEventOnEveryWatch,
	TestUsageIsToldByTokenTeamModelAndDay, TestAnIntegrationSeesItsOwnUsageAlone,
	TestAWatchTellsEveryChangeInOrder, TestAWatchSeesLittleOfTokensOfOtherGatewaysAndNothingOfOtherOrgs, TestTheWireOfAWatch,
	TestAWatchGoesOnFromWhereItWasUnderWriters, TestARevisionThatTheLogDoesNotHaveIsGone, TestAReaderThatDoesNotReadIsCut,
	TestMoreRecallsThanMayWaitEndAWatch, TestAWatchEndsWithItsToken, TestAWatchOutlivesTheServersReadTimeout,
	TestWithoutTheDatabaseNoHeadIsToldAndTheWatchFallsSilent, TestTheSameEventsComeInProcess,
	TestSigningOffEndsTheWatchAndForgetsTheInstance, TestAWatchPassesOverHTTP2,
}

// oneDatabase are those that open a control plane and are not, and why.
var oneDatabase = map[string]string{
	"TestNoTokenIsInTheDatabaseOrTheLog": "reads SQLite's files",
}

func TestOverPostgreSQL(t *testing.T) {
	t.Parallel()
	for _, run := range bothDatabases {
		t.Run(nameOf(run), run)
	}
}

func nameOf(f func(*testing.T)) string {
	name := goruntime.FuncForPC(reflect.ValueOf(f).Pointer()).Name()
	return name[strings.LastIndexByte(name, '.')+1:]
}

// TestEveryTestOfAControlPlaneRunsOverBothDatabases: so that none is forgotten.
func TestEveryTestOfAControlPlaneRunsOverBothDatabases(t *testing.T) {
	listed := map[string]bool{}
	for _, run := range bothDatabases {
		listed[nameOf(run)] = true
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(fn.Name.Name, "Test") || !opensPlane(fn) {
				continue
			}
			found++
			if listed[fn.Name.Name] == (oneDatabase[fn.Name.Name] != "") {
				t.Errorf("%s of %s stands in bothDatabases or in oneDatabase, not in both or none", fn.Name.Name, name)
			}
		}
	}
	if found < len(bothDatabases) {
		t.Errorf("%d tests open a control plane, %d are listed", found, len(bothDatabases))
	}
}

func opensPlane(fn *ast.FuncDecl) (opens bool) {
	ast.Inspect(fn, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if name, ok := call.Fun.(*ast.Ident); ok && name.Name == "newPlane" {
				opens = true
			}
		}
		return !opens
	})
	return opens
}
