// The calls that a tick makes, from C alone: what nobody who asks the library can go below.

#define NVML_NO_UNVERSIONED_FUNC_DEFS 1
#include "nvml.h"

#define GPUS 8

static char text[96];
static nvmlMemory_t memory;
static nvmlUtilization_t utilization;
static nvmlProcessInfo_t processes[8];
static nvmlFieldValue_t fields[4];
static nvmlEventData_t event;
static unsigned long long energy;

static void uuid(nvmlDevice_t d, nvmlEventSet_t s) { nvmlDeviceGetUUID(d, text, sizeof text); }
static void version(nvmlDevice_t d, nvmlEventSet_t s) { nvmlSystemGetDriverVersion(text, 80); }
static void wait(nvmlDevice_t d, nvmlEventSet_t s) { nvmlEventSetWait_v2(s, &event, 1); }
static void used(nvmlDevice_t d, nvmlEventSet_t s) { nvmlDeviceGetMemoryInfo(d, &memory); }
static void joules(nvmlDevice_t d, nvmlEventSet_t s) { nvmlDeviceGetTotalEnergyConsumption(d, &energy); }
static void busy(nvmlDevice_t d, nvmlEventSet_t s) { nvmlDeviceGetUtilizationRates(d, &utilization); }
static void running(nvmlDevice_t d, nvmlEventSet_t s) {
    unsigned n = 1;
    nvmlDeviceGetComputeRunningProcesses_v3(d, &n, processes);
}
static void throttled(nvmlDevice_t d, nvmlEventSet_t s) {
    for (int i = 0; i < 3; i++) fields[i].fieldId = 269 + i;
    fields[3].fieldId = 230;
    nvmlDeviceGetFieldValues(d, 4, fields);
}

// In the order of the calls in calls.go.
static void (*const calls[])(nvmlDevice_t, nvmlEventSet_t) = {uuid, version, wait, used, joules, busy, running, throttled};
#define CALLS (sizeof calls / sizeof *calls)

// Makes each call for each GPU, n times; or only one of the calls, for one GPU.
void gpupay_calls(long n, int only) {
    nvmlDevice_t d[GPUS];
    nvmlEventSet_t s;
    nvmlEventSetCreate(&s);
    for (int g = 0; g < GPUS; g++) nvmlDeviceGetHandleByIndex_v2(g, &d[g]);
    while (n--) {
        if (only >= 0) {
            calls[only](d[0], s);
            continue;
        }
        for (int g = 0; g < GPUS; g++)
            for (unsigned c = 0; c < CALLS; c++) calls[c](d[g], s);
    }
    nvmlEventSetFree(s);
}
